"""The dataclasses of vmessd do what those of the standard library do."""

import dataclasses

import pytest

from vmessd.core.dataclass import dataclass


@dataclass(frozen=True)
class Point:
    """A point."""

    x: int
    name: str = "origin"


@dataclass(frozen=True)
class Other:
    """Another class with the same fields."""

    x: int
    name: str = "origin"


@dataclass
class Box:
    """Something that changes."""

    content: list[int] = dataclasses.field(default_factory=list)


@dataclass(eq=False)
class Task:
    """Something that is only equal to itself."""

    number: int


def test_objects_with_the_same_values_are_equal_and_have_one_hash() -> None:
    assert Point(1) == Point(1, "origin") == Point(x=1)
    assert len({Point(1), Point(1), Point(2), Point(1, "other")}) == 3
    others: list[object] = [Other(1), (1, "origin")]
    assert Point(1) not in others


def test_the_means_of_the_standard_library_work() -> None:
    assert repr(Point(1)) == "Point(x=1, name='origin')"
    assert dataclasses.replace(Point(1), name="other") == Point(1, "other")
    assert dataclasses.asdict(Point(1)) == {"x": 1, "name": "origin"}
    assert Point.__match_args__ == ("x", "name")
    assert Point.__doc__ == "A point."


def test_what_may_change_is_equal_by_value_and_has_no_hash() -> None:
    box = Box()
    box.content.append(1)
    assert (box, Box()) == (Box([1]), Box([]))
    with pytest.raises(TypeError, match="unhashable"):
        hash(box)


def test_what_is_not_compared_is_equal_to_itself_only() -> None:
    task = Task(1)
    assert task == task  # noqa: PLR0124 -- this is what is tested
    assert task != Task(1)
    assert len({task, Task(1)}) == 2
