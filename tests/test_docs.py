"""The site: its code runs and prints what it says, its links lead somewhere, its made parts are up to date."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import runpy
import tomllib
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import NamedTuple

import pytest

import gramjd
from gramjd import aggregation, errors
from gramjd.engine import rules
from gramjd.engine.choice import only
from gramjd.extras import MissingExtraError
from gramjd.profiling.monitor import NAMES as NUMBERS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
IDS = [str(page.relative_to(DOCS)) for page in PAGES]
# `{ .python }` for blocks that include a file: ruff, which formats the others, leaves them alone.
FENCE = re.compile(r"^( *)```(?:\{ \.)?(\w+)([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
# Blocks that are shown and not run, by page. Each says so in its title.
NOT_RUN = {
    "howto/compiled.md": 1,
    "howto/frameworks.md": 3,
    "howto/gpu.md": 2,
    "howto/processes.md": 4,
    "migrate/other.md": 3,
    "migrate/torchjd.md": 3,
}


@pytest.fixture(autouse=True)
def _walks() -> Iterator[None]:
    """What is shown runs as it does for its readers."""
    with only(None):
        yield


class Block(NamedTuple):
    language: str
    options: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, with files that are included put in."""
    text = page.read_text()
    found = []
    for indent, language, options, inside in FENCE.findall(text):
        line = text[: text.index(inside)].count("\n") + 1 if inside else 0
        body = re.sub(rf"^{indent}", "", inside, flags=re.MULTILINE)
        body = re.sub(r'^--8<-- "(.*)"$', lambda m: (ROOT / m[1]).read_text(), body, flags=re.MULTILINE)
        found.append(Block(language, options, body, line))
    return found


def not_run(block: Block) -> bool:
    return block.language == "python" and 'title="not run here' in block.options


def printed(block: Block) -> bool:
    return block.language == "text" and 'title="prints"' in block.options


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_code_runs_and_prints_what_the_page_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One namespace per page, in the order of the page."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    said = ""
    for block in blocks(page):
        if printed(block):
            assert doctest.OutputChecker().check_output(block.text, said, flags), f"{page}:{block.line}\n{said}"
        if block.language != "python" or not_run(block):
            continue
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, namespace)
        said = out.getvalue()


def test_blocks_that_are_not_run_are_few_and_say_so() -> None:
    found = Counter(str(page.relative_to(DOCS)) for page in PAGES for block in blocks(page) if not_run(block))
    assert found == Counter(NOT_RUN)


def test_most_pages_have_code() -> None:
    assert sum(any(b.language == "python" for b in blocks(page)) for page in PAGES) >= 25
    assert sum(printed(b) for page in PAGES for b in blocks(page)) >= 10


def anchors(page: Path) -> set[str]:
    """Those of the headings, of spans with an id, and of what is taken from docstrings."""
    text = FENCE.sub("", page.read_text())
    slugs: set[str] = set()
    for words in re.findall(r"^#+ +(.*)$", text, re.MULTILINE):
        given = re.search(r"\{ *#([\w.-]+) *\}\s*$", words)
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", words).strip().lower()
        slugs.add(given[1] if given else re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain)).strip("-"))
    return slugs | set(re.findall(r'id="([^"]+)"', text)) | set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    with_files = runpy.run_path(str(DOCS / "_tools" / "included.py"))["with_files"]
    text = FENCE.sub("", with_files(page.read_text()))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert target.is_relative_to(DOCS), f"{link} leaves the site"
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    assert sorted(re.findall(r"([\w/-]+\.md)$", nav, re.MULTILINE)) == IDS


def test_made_parts_are_up_to_date() -> None:
    made = runpy.run_path(str(DOCS / "_tools" / "generate.py"))
    assert made["main"](["--check"]) == 0, "run python docs/_tools/generate.py and commit what it changed"
    used = {name for page in PAGES for _, name, _ in made["MARKED"].findall(page.read_text())}
    assert used == set(made["PARTS"])


def test_a_changed_part_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = runpy.run_path(str(DOCS / "_tools" / "generate.py"))
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text("# Page\n\n<!-- generated: count of operations -->\nnone\n<!-- end generated -->\n")
    assert made["main"](["--check"], tmp_path) == 1
    assert "docs/page.md" in capsys.readouterr().err
    assert made["main"]([], tmp_path) == 0
    assert "operations in" in page.read_text()
    assert made["main"](["--check"], tmp_path) == 0


def shown() -> list[str]:
    """What pages take from docstrings."""
    return [name for page in PAGES for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)]


def test_docstrings_are_marked_up_with_their_words_as_they_are() -> None:
    text = (
        "What.\n\n====  ====\n`a`   one\n`b`   two\n====  ====\n\nRaises:\n    OneError, TwoError: if\n        so.\n"
        "    In every case nothing.\n\n>>> 1 + 1\n2\n\nEnd."
    )
    assert runpy.run_path(str(DOCS / "_tools" / "markup.py"))["marked_up"](text) == (
        "What.\n\n| | |\n|---|---|\n| `a` | one |\n| `b` | two |\n\nRaises:\n    OneError, TwoError: if\n        so.\n"
        "\nIn every case nothing.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nEnd."
    )


def test_every_public_name_is_described_once() -> None:
    assert max(Counter(shown()).values()) == 1
    assert {f"gramjd.{name}" for name in gramjd.__all__} <= set(shown())
    bases = {"Coordinatewise", "LossWeighting", "Weighting"}
    assert {f"gramjd.aggregation.{name}" for name in bases} <= set(shown())
    assert set(aggregation.__all__) - bases <= set(gramjd.__all__)


def test_every_error_and_warning_has_its_place() -> None:
    own = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    names = {kind.__name__ for kind in [*own, MissingExtraError] if kind.__module__.startswith("gramjd")}
    assert names <= {name.rpartition(".")[2] for name in shown()}


OWN = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", [*OWN, MissingExtraError], ids=lambda kind: kind.__name__)
def test_a_message_leads_to_its_place_on_the_page(kind: type[Exception]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if issubclass(kind, Warning):
            errors.warn("something", kind)
            said = str(caught[0].message)
        else:
            said = "".join(traceback.format_exception_only(kind("something")))
    page, anchor = re.search(r"(docs/[\w/]+\.md)#([\w.]+)\b", said).groups()
    assert anchor.endswith(kind.__name__)
    assert anchor in anchors(ROOT / page)
    assert str(kind("something")) == "something"


def test_every_extra_is_named() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (DOCS / "install.md").read_text().split("| extra | for |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(extras)


def test_every_number_of_the_monitor_is_explained() -> None:
    table = (DOCS / "monitor.md").read_text().split("| number | unit |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"`(\w+)`(?=[^|]*\|)", re.sub(r"(\|[^|]*\|).*", r"\1", table))) == sorted(NUMBERS)


def test_the_engine_is_rebuilt_on_one_page() -> None:
    assert (DOCS / "rebuild.md").read_text().count("\n") < 300


def test_drawings_are_used_and_described() -> None:
    """Each has words for those who cannot see it, and letters that are letters."""
    drawings = {path for folder in ("concepts", "aggregators") for path in (DOCS / folder).glob("*.svg")}
    assert len(drawings) == 13
    found = [
        (words, (page.parent / path).resolve())
        for page in PAGES
        for words, path in re.findall(r"!\[([^]]*)\]\(([^)]+\.svg)\)", page.read_text())
    ]
    assert drawings <= {path for _, path in found}
    assert all(len(words) > 20 for words, path in found if path in drawings)
    assert all("<text" in path.read_text() for path in drawings)


def test_every_family_of_aggregators_has_a_drawing() -> None:
    families = {page.stem for page in (DOCS / "aggregators").glob("*.md")} - {"index"}
    assert families == {path.stem for path in (DOCS / "aggregators").glob("*.svg")}


@pytest.fixture(autouse=True)
def _rules_as_they_were() -> Iterator[None]:
    """A page that registers a rule leaves none behind."""
    table, custom = copy(rules.TABLE), copy(rules.CUSTOM)
    yield
    for kept, now in ((table, rules.TABLE), (custom, rules.CUSTOM)):
        now.clear()
        now.update(kept)
