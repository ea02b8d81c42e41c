"""A clone is a folder named gramjd without an `__init__.py`: Python started above it still finds the package."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SEEN = "import gramjd, gramjd.cli, gramjd.profiling.command as command; print(gramjd.__file__); print(command.__file__)"
BENCH = "import sys; from gramjd.cli import main; sys.exit(main(['bench', '--compare', 'nosuch', 'nosuch']))"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone of the repository, as far as an installation reads it."""
    root = tmp_path_factory.mktemp("above") / "gramjd"
    root.mkdir()
    skip = shutil.ignore_patterns("__pycache__", "results", "*.egg-info")
    for folder in ("gramjd", "kernels", "profiling", ".ci"):
        shutil.copytree(ROOT / folder, root / folder, ignore=skip)
    for file in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / file, root)
    return root


def installed(clone: Path, tmp_path: Path, hook: str, without: str = "") -> Path:
    """The Python of a new environment in which the clone is installed by one of the hooks of its build backend."""
    build = f"import sys; sys.path.insert(0, '.ci/backend'); import checkout_backend as b; b.{hook}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=clone, check=True, capture_output=True)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    paths = {"base": str(environment), "platbase": str(environment)}
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        record = files.read(next(name for name in files.namelist() if name.endswith("RECORD"))).decode()
        assert sorted(line.split(",")[0] for line in record.splitlines()) == sorted(files.namelist())
        files.extractall(sysconfig.get_path("purelib", "venv", paths))
    if without:
        Path(sysconfig.get_path("purelib", "venv", paths), without).unlink()
    return Path(sysconfig.get_path("scripts", "venv", paths), "python")


def run(python: Path, code: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True)


def test_above_a_clone_that_is_installed_editable(clone, tmp_path):
    python = installed(clone, tmp_path, "build_editable")
    found = run(python, SEEN, clone.parent)
    assert found.returncode == 0, found.stderr
    assert "cannot read nosuch" in run(python, BENCH, clone.parent).stderr
    assert found.stdout.split() == [str(clone / "gramjd/__init__.py"), str(clone / "profiling/command.py")]


def test_above_a_clone_that_is_installed_as_a_copy(clone, tmp_path):
    python = installed(clone, tmp_path, "build_wheel")
    found = run(python, SEEN, clone.parent)
    assert found.returncode == 0, found.stderr
    assert all("site-packages" in line for line in found.stdout.split())
    refused = run(python, BENCH, clone.parent)
    assert refused.returncode == 1
    assert refused.stderr.startswith("gramjd: `bench` needs a checkout of the repository")
    assert refused.stderr.count("\n") == 1


def test_the_line_of_the_backend_is_what_finds_it(clone, tmp_path):
    """Without it setuptools' finder loses to the namespace package. Once this fails, the backend can go."""
    python = installed(clone, tmp_path, "build_editable", without="gramjd-checkout.pth")
    assert run(python, "import gramjd; print(gramjd.__file__)", clone.parent).stdout.strip() == "None"
    assert run(python, SEEN, tmp_path).returncode == 0


def test_in_a_clone_that_is_not_installed(clone):
    # This Python without the finder that an editable install of the repository has brought.
    hidden = (
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in getattr(finder, '__module__', '')]"
    )
    found = run(Path(sys.executable), f"import sys; {hidden}; import gramjd; gramjd.gram_backward", clone)
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == (
        f"ImportError: gramjd was found in {clone} but is not installed there, so gramjd.kernels is missing: run"
        f" pip install -e {clone}"
    )
