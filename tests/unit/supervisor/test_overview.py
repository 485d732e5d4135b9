"""What the list reads out of a command line of QEMU, and of addresses."""

import pytest

from vmessd.core.models.wires import VMAddress
from vmessd.network.neighbours import best
from vmessd.supervisor import overview


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        ([], (None, None)),
        (["qemu"], (1, 2**27)),
        (["qemu", "-smp", "4", "-m", "2G"], (4, 2**31)),
        (["qemu", "-m", "64", "-m", "size=96M,slots=2"], (1, 96 * 2**20)),
        (["qemu", "-smp", "cpus=2,sockets=1", "-m", "512,maxmem=1G"], (2, 2**29)),
        (["qemu", "-smp", "sockets=2", "-m", "banana"], (None, None)),
        (["qemu", "-smp", "9" * 30], (None, 2**27)),
        (["qemu", "-m"], (1, 2**27)),
    ],
)
def test_processors_and_memory_of_a_command_line(argv: list[str], found: tuple[int | None, int | None]) -> None:
    assert overview.hardware(argv) == found


def test_the_best_address_comes_first_and_guesses_are_left_out() -> None:
    def known(address: str, *, is_known: bool = True) -> VMAddress:
        return VMAddress(0, "02:11:9b:af:00:00", address, seen=True, source="", known=is_known)

    found = [known("fe80::1"), known("2001:db8::1"), known("192.0.2.1"), known("192.0.2.1")]
    assert best([*found, known("10.0.2.15", is_known=False)]) == ["192.0.2.1", "2001:db8::1", "fe80::1"]
