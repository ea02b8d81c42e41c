"""Licence, version, citation and the hosted checks say the same wherever they are written."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import gramjd

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RELEASES = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_licence_is_a_file_and_a_field():
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License")
    assert "the gramjd contributors" in text
    assert PROJECT["license"] == "MIT"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert PROJECT["authors"] == [{"name": "the gramjd contributors"}]
    # A licence classifier beside a licence expression is an error of the build.
    assert [line for line in PROJECT["classifiers"] if line.startswith("License")] == []


def test_the_version_is_written_once():
    assert "version" not in PROJECT
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tool["setuptools"]["dynamic"]["version"] == {"attr": "gramjd.__version__"}


def test_the_version_and_the_changelog_agree():
    (head, _), (newest, dated), *_ = RELEASES
    assert head == "Unreleased"
    assert re.fullmatch(r" - \d{4}-\d\d-\d\d", dated)
    base, _, development = gramjd.__version__.partition(".dev")
    number = [int(part) for part in base.split(".")]
    released = [int(part) for part in newest.split(".")]
    if development:  # the version that the unreleased changes will become
        assert number > released
        unreleased = (ROOT / "CHANGELOG.md").read_text().split("## [")[1]
        assert f"To become {base}." in unreleased
    else:
        assert number == released


def test_releases_stand_newest_first():
    numbers = [[int(part) for part in version.split(".")] for version, _ in RELEASES[1:]]
    assert numbers == sorted(numbers, reverse=True)


def test_urls_are_known_ones():
    assert PROJECT["urls"] == {"Paper": "https://arxiv.org/abs/2406.16232"}


def test_the_citation_names_software_and_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(cited)
    assert cited["license"] == PROJECT["license"]
    (paper,) = cited["references"]
    assert paper["title"] == "Jacobian Descent for Multi-Objective Optimization"
    assert [author["family-names"] for author in paper["authors"]] == ["Quinton", "Rey"]
    assert paper["url"] == PROJECT["urls"]["Paper"]


def test_hosted_checks_run_the_same_list_on_every_version():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"] == {"python": ["3.11", "3.12", "3.13"], "torch": ["2.13.0", "newest"]}
    assert job["steps"][-1] == {"run": ".ci/run"}
    named = {line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert named == set(job["strategy"]["matrix"]["python"])


def test_the_edits_of_the_constraints_hit_their_lines():
    pins = (ROOT / ".ci/constraints.txt").read_text()
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["checks"]["steps"]
    removed = next(step["run"] for step in steps if "newest" in step.get("if", "") and "/d'" in step["run"])
    pattern = re.search(r"'/(.*)/d'", removed)[1]
    assert sorted(line.split("==")[0] for line in pins.splitlines() if re.search(pattern, line)) == ["torch", "triton"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_issue_templates_are_forms(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert set(form) == {"blank_issues_enabled"}
        return
    assert {"name", "description", "body"} <= set(form)
    identifiers = [field["id"] for field in form["body"]]
    assert len(set(identifiers)) == len(identifiers)
    assert any(field.get("validations", {}).get("required") for field in form["body"])
