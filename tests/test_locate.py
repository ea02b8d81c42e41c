"""Places as commands are given them, and what is said of wrong ones."""

import sys

import pytest

from gramjd.errors import InputError
from gramjd.locate import locate


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "beside_l.py").write_text("value = 7\n")
    (tmp_path / "mine_l.py").write_text("import beside_l\n\n\nclass Kind:\n    value = beside_l.value\n")
    (tmp_path / "broken_l.py").write_text("import there_is_no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    for name in ("beside_l", "mine_l", "broken_l"):
        sys.modules.pop(name, None)


def test_modules_of_the_working_directory(folder):
    assert locate("mine_l:Kind.value") == 7
    assert str(folder) in sys.path


def test_files_and_what_lies_beside_them(folder, monkeypatch):
    monkeypatch.chdir("/")
    before = list(sys.path)
    assert locate(f"{folder}/mine_l.py:Kind.value") == 7
    assert locate(f"{folder}/mine_l.py:Kind").__name__ == "Kind"
    assert sys.path == [str(folder), *before]  # once


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("mine_l", "expected MODULE:NAME or FILE.py:NAME"),
        (":x", "expected MODULE:NAME"),
        ("mine_l:", "expected MODULE:NAME"),
        ("nosuch_l:x", "there is no module 'nosuch_l' here or among the installed packages"),
        ("nosuch_l.py:x", "there is no file 'nosuch_l.py'"),
        ("mine_l:Kin", "mine_l has nothing called 'Kin'; did you mean 'Kind'?"),
        ("mine_l:Kind.valu", "nothing called 'Kind.valu'; did you mean 'value'?"),
    ],
)
def test_what_is_wrong_is_said(folder, place, said):
    with pytest.raises(InputError) as caught:
        locate(place)
    assert said in str(caught.value)


def test_faults_of_the_module_itself_pass_through(folder):
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_package"):
        locate("broken_l:x")
