"""The README's code runs, its commands are where `.ci/run` looks for them, its links lead somewhere."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import gramjd
from gramjd.cli import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def quick_start(kept: str) -> str:
    """One side of the diff: the lines marked `kept` and those that are common to both."""
    block = re.search(r"```diff\n(.*?)```", README, re.DOTALL)[1]
    return "\n".join(line[2:] for line in block.splitlines() if line[:1] in (kept, " ", ""))


def train(code: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    loader = [(torch.randn(5, 3, 4), torch.randint(3, (5,))) for _ in range(2)]
    exec(code, {"model": model, "loader": loader, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)})
    return [p.detach() for p in model.parameters()]


def test_quick_start_runs_before_and_after_the_change():
    before, after = train(quick_start("-")), train(quick_start("+"))
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_quick_start_with_mean_is_the_loop_before_the_change():
    averaged = quick_start("+").replace("gram_backward(losses)", "gram_backward(losses, gramjd.Mean())")
    for p, q in zip(train(quick_start("-")), train(averaged), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_documented_commands_are_found_by_ci(name):
    script = (ROOT / ".ci" / "run").read_text()
    function = re.search(r"^documented\(\) \{.*?^\}", script, re.DOTALL | re.MULTILINE)[0]
    found = subprocess.run(["bash", "-c", f"{function}\ndocumented {name}"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("python3 -m venv .venv && .venv/bin/pip install -c .ci/constraints.txt")
    assert found.stdout.count("\n") == 1


PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_somewhere(page):
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text)
    local = [link for link in links if not link.startswith("https://")]
    assert local or page.name != "README.md"
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_readme_is_one_page_with_one_figure_and_five_ways_on():
    assert README.count("\n") <= 120
    assert README.count("![") == 1
    assert len(re.findall(r"^- .*\]\(", README.split("## Read on")[1], re.MULTILINE)) == 5


def test_number_of_aggregators():
    bases = {"Coordinatewise", "LossWeighting", "Weighting"}
    assert f"({len(set(gramjd.aggregation.__all__) - bases)} aggregators)" in README


def test_interface_table_names_exist():
    table = (ROOT / "docs/reference/functions.md").read_text().split("first use.")[1].split("\n\n")[1]
    names = set(re.findall(r"`(\w+)\(", table)) | set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    assert {"gram_backward", "mtl_backward", "gramian", "explain", "UPGrad", "register_rule"} <= names
    assert [name for name in names if not hasattr(gramjd, name)] == []


def test_commands_on_their_page_exist():
    named = re.findall(r"^## gramjd (.*)$", (ROOT / "docs/cli.md").read_text(), re.MULTILINE)
    assert named == [command.words for command in COMMANDS]
