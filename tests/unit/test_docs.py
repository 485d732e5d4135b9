"""README and docs: generated parts are current, links lead somewhere, command lines parse, words are plain."""

import ast
import re
import shlex
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmessctl.cli.grammar import parse

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "contrib/dev"))

import reference  # noqa: E402 -- contrib is no package

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REPOSITORY = "https://github.com/emptystack/vmess"
ON_THE_WEB = {
    f"{REPOSITORY}/blob/main/": "",
    "https://raw.githubusercontent.com/emptystack/vmess/main/": "",
}
"""Where the files of the repository are for a reader of the README on a package index."""

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, *DOCS, *(ROOT / f"{page}.md" for page in ("CONTRIBUTING", "CHANGELOG", "SECURITY"))]
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`", "``", text)


def by_hand(path: Path) -> str:
    """A page's prose without what the tables of the program say, nor the modules."""
    text = reference.MARK.sub("", prose(path))
    return text if path.name != "CONTRIBUTING.md" else re.sub(r"^\| ``.*$", "", text, flags=re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
        anchor = reference.anchor(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading))
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def target(page: Path, link: str) -> tuple[Path, str] | None:
    """The file of this repository that a link leads to, and the anchor; None for what is elsewhere."""
    path, _, anchor = link.partition("#")
    for web in ON_THE_WEB:
        if path.startswith(web):
            return ROOT / path.removeprefix(web), anchor
    if "://" in path:
        return None
    return (page.parent / path).resolve() if path else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        led = target(page, link)
        if led is None:
            continue
        path, anchor = led
        assert path.is_file(), link
        assert path.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(path), link


def test_the_readme_has_absolute_links_since_a_package_index_shows_it_too() -> None:
    links = LINK.findall(prose(README))
    assert len(links) > 15
    assert [link for link in links if not link.startswith("https://")] == []
    urls = PROJECT["project"].get("urls", {})
    assert not urls or REPOSITORY in {url.rstrip("/") for url in urls.values()}


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= 8000


def test_the_readme_installs_by_pip_and_by_pipx() -> None:
    section = README.read_text(encoding="utf-8").partition("\n## Install\n")[2].partition("\n## ")[0]
    assert "    pipx install ./vmess\n" in section
    assert "`pip install ./vmess`" in section


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, left = {README}, [README]
    while left:
        page = left.pop()
        targets = {led[0] for link in LINK.findall(prose(page)) if (led := target(page, link))}
        new = {path for path in targets if path.suffix == ".md"} - reached
        reached |= new
        left += new
    assert set(DOCS) <= reached


def test_docs_are_in_the_source_distribution() -> None:
    assert "docs" in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]


# -- What is generated --


def test_the_reference_is_what_the_tables_say_today() -> None:
    assert list(map(name, reference.stale())) == [], "contrib/dev/reference writes them again"


def test_a_stale_page_is_noticed_and_only_its_generated_parts_are_replaced() -> None:
    for page in reference.PARTS:
        text = (reference.PAGES / page).read_text(encoding="utf-8")
        edited = text.replace("\n| ", "\n| stale ").replace("<!-- end ", "more\n<!-- end ") + "by hand\n"
        outside = [line for line in by_hand(reference.PAGES / page).splitlines() if line.startswith("| ")]
        written = reference.written(page, edited)
        assert written.endswith("by hand\n")
        assert written.count("| stale ") == len(outside)
        assert "more\n" not in written.replace("or more\n", "")


def test_a_page_without_a_generated_part_is_an_error() -> None:
    text = (reference.PAGES / "verbs.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"verbs\.md has the generated parts .* it should have"):
        reference.written("verbs.md", text.replace("begin index", "begin nothing"))


def test_the_command_names_stale_pages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert (reference.main(), capsys.readouterr().out) == (0, "")
    monkeypatch.setitem(reference.PARTS["verbs.md"], "index", lambda: "other")
    assert (reference.main(), capsys.readouterr().out) == (1, "docs/reference/verbs.md\n")
    monkeypatch.setattr(sys, "argv", ["reference", "verbs"])
    assert (reference.main(), capsys.readouterr().out) == (2, "")


def test_text_of_the_tables_is_shown_as_it_is() -> None:
    assert reference.prose("'lab*' is <N>\n or a|b") == r"'lab\*' is \<N> or a\|b"


# -- What is written by hand --

UNTYPED = re.compile(r"[<>]|\$\(|\.\.\.|[A-Z]{4}|\[")


def examples(path: Path) -> list[str]:
    """The command lines of vmessctl that a page shows: in its blocks, and in code within its prose."""
    text = path.read_text(encoding="utf-8")
    text = reference.MARK.sub("", text).replace("\\\n", "")
    lines = [line.strip().removeprefix("$ ") for line in re.findall(r"^    (.*)$", text, flags=re.MULTILINE)]
    paragraphs = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]*)`", paragraphs)]
    return [line.partition(" #")[0].strip() for line in lines if re.match(r"vmessctl( |$)", line)]


@pytest.mark.parametrize("page", [README, *DOCS], ids=name)
def test_a_command_line_that_is_shown_parses(page: Path) -> None:
    for line in examples(page):
        command = re.split(r" [|>] ?", f"{line} ")[0]
        if UNTYPED.search(command.replace("'lab[", "")) or "TAB" in command:
            continue
        parse(shlex.split(command)[1:])


def test_there_are_many_examples() -> None:
    assert sum(len(examples(page)) for page in [README, *DOCS]) > 100


STUMBLES = r"\banew\b|\bwhoever\b|(?<!there) (?:is|are) no (?!longer)|\ball but\b|, say[,.)]"
JARGON = r"|\bover there\b|\bgo(?:es)? on\b|\b(?:stands?|stood) still\b|\b(?:stands|stood) on\b"
"""What is said in standard terms by now; the pages about decisions keep the words of their time."""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_are_in_plain_english(page: Path) -> None:
    text = re.sub(r'"[^"\n]*"', "", " ".join(by_hand(page).split()))  # but for words that are quoted
    plain = STUMBLES if page.parent.name == "decisions" else STUMBLES + JARGON
    assert re.findall(plain, text, flags=re.IGNORECASE) == []


def texts(path: Path) -> Iterator[str]:
    """The docstrings and other texts in a module, each in one line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield " ".join(node.value.split())


@pytest.mark.parametrize("package", ["vmessd", "vmessctl"])
def test_messages_and_docstrings_are_in_plain_english(package: str) -> None:
    found = {
        (name(path), text)
        for path in (ROOT / package).rglob("*.py")
        for text in texts(path)
        if re.search(STUMBLES + JARGON, text, flags=re.IGNORECASE)
    }
    assert found == set()


AMERICAN = r"\b(?:color|behavior|license[ds]?|neighbor\w*|center|recogniz\w*|initializ\w*|organiz\w*)\b"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_are_spelled_the_british_way(page: Path) -> None:
    assert re.findall(AMERICAN, by_hand(page).replace("LICENSE", "")) == []
