"""What `import gramjd` offers: names that are imported at their first use, and errors that name the right word."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gramjd
from gramjd import aggregation, optim, profiling, scalarization
from gramjd.renamed import GRAMIAN_WORDS, INSIDE, MTL_WORDS, STEP_WORDS, foreign_words

ROOT = Path(__file__).parent.parent
HELPERS = {"Coordinatewise", "LossWeighting", "Weighting"}  # base classes, for those who write an aggregator


def loaded(code: str) -> set[str]:
    """The packages that a fresh process has imported after `code`."""
    code = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def typed(package: str) -> set[str]:
    """The names that a type checker sees in the package's `__init__.py`."""
    tree = ast.parse(Path(sys.modules[package].__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {alias.name for node in block.body for alias in node.names}


def test_import_is_free():
    assert {"torch", "numpy"} & loaded("import gramjd; gramjd.__version__; dir(gramjd)") == set()


def test_a_name_loads_torch_and_nothing_heavier():
    found = loaded("import gramjd; gramjd.PCGrad; gramjd.explain; gramjd.register_rule; gramjd.capture")
    assert "torch" in found
    assert found & {"triton", "matplotlib", "hypothesis", "sklearn", "transformers", "torchjd", "scipy"} == set()


@pytest.mark.parametrize("package", [gramjd, profiling], ids=lambda package: package.__name__)
def test_all_names_are_there_and_typed(package):
    assert set(package.__all__) == typed(package.__name__)
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__name__ == name


def test_every_aggregator_is_at_the_top():
    assert set(aggregation.__all__) - HELPERS <= set(gramjd.__all__)
    assert gramjd.PCGrad is aggregation.PCGrad


def failing(programs: list[str]) -> list[str]:
    """Those of the programs that fail, each in a process that has imported torch and nothing of gramjd."""
    # Forked, as torch takes long to import.
    code = (
        "import os, sys, torch\n"
        "for program in sys.argv[1:]:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        exec(program)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(child, 0)[1]:\n"
        "        print('FAILED', program)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *programs], capture_output=True, text=True, check=True)
    return [line.removeprefix("FAILED ") for line in done.stdout.splitlines() if line.startswith("FAILED ")]


def test_programs_that_fail_are_found():
    assert failing(["1 / 0", "import gramjd", "import gramjd; gramjd.zzz"]) == ["1 / 0", "import gramjd; gramjd.zzz"]


def written_paths() -> set[str]:
    """What the pages write as `gramjd.something.more`."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return {path for page in pages for path in re.findall(r"`(gramjd(?:\.\w+)+)", page.read_text())}


def test_what_the_pages_write_needs_one_import():
    paths = written_paths() | {f"gramjd.{name}" for name in ("aggregation", "engine.rules", "errors", "profiling")}
    assert "gramjd.kernels.cost.load" in paths
    # Of modules with an extra the import is written out.
    extra = ("gramjd.testing", "gramjd.experiments")
    assert failing([f"import {path if path.startswith(extra) else 'gramjd'}; {path}" for path in sorted(paths)]) == []


def test_a_module_with_an_extra_says_how_it_is_imported():
    tried = "import gramjd\ntry:\n    gramjd.testing\nexcept AttributeError as error:\n    "
    assert failing([tried + "assert 'import gramjd.testing' in str(error)"]) == []


def test_functions_are_not_hidden_by_modules():
    """A module named like a public function would take its place once something imports it."""
    check = "import gramjd; assert all(callable(getattr(gramjd, name)) for name in gramjd.__all__)"
    modules = ("_explain", "compiled.capture", "profiling.layers", "backward", "cli")
    assert failing([f"import gramjd.{module}; {check}" for module in modules]) == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("upgrad", "did you mean UPGrad?"),
        ("UPGradWeighting", "did you mean UPGrad?"),
        ("gram_backwards", "did you mean gram_backward?"),
        ("jac_to_grad", "gram_backward(losses, aggregator) fills .grad in one call"),
        ("Engine", "needs no engine"),
        ("mtl", "gramjd.mtl_backward(losses, aggregator) is for tasks on a shared trunk"),
        ("GramMonitor", "it is gramjd.profiling.GramMonitor"),
        ("zzz", "module 'gramjd' has no attribute 'zzz'"),
    ],
)
def test_a_wrong_name_gets_the_right_one(name, hint):
    with pytest.raises(AttributeError) as raised:
        getattr(gramjd, name)
    assert str(raised.value).endswith(hint)


@pytest.mark.parametrize("module", ["backward", "step"])
def test_a_module_that_is_called_names_the_function(module):
    """As soon as it is imported it is an attribute, where before there was an AttributeError."""
    with pytest.raises(TypeError, match=rf"gramjd.{module} is a module, .*gram_backward\(losses, aggregator\)"):
        importlib.import_module(f"gramjd.{module}")([torch.ones(())])


@pytest.mark.parametrize(("package", "names"), INSIDE.items())
def test_names_further_down_are_there(package, names):
    public = importlib.import_module(f"gramjd.{package}").__all__
    assert set(names) <= set(public) - set(gramjd.__all__)
    for name in names:
        with pytest.raises(AttributeError, match=f"it is gramjd.{package}.{name}$"):
            getattr(gramjd, name)


@pytest.mark.parametrize(
    ("package", "name", "hint"),
    [
        (aggregation, "UPGradWeighting", "did you mean UPGrad?"),
        (aggregation, "Aggregator", "a base class is gramjd.aggregation.Weighting"),
        (optim, "LM", "it is LevenbergMarquardt"),
        (scalarization, "UW", "it is Uncertainty"),
    ],
)
def test_packages_know_the_names_of_others(package, name, hint):
    with pytest.raises(AttributeError) as raised:
        getattr(package, name)
    assert str(raised.value).endswith(hint)


@pytest.mark.parametrize(
    ("make", "right"),
    [
        (lambda: gramjd.UPGrad(pref_vector=torch.ones(2)), "preference="),
        (lambda: gramjd.DualProj(pref_vector=torch.ones(2)), "preference="),
        (lambda: gramjd.UPGrad(norm_eps=1e-4), "ridge="),
        (lambda: gramjd.UPGrad(reg_eps=1e-4), "ridge="),
        (lambda: gramjd.AlignedMTL(scale_mode="min"), "scale="),
        (lambda: gramjd.Krum(n_byzantine=1), "byzantine="),
        (lambda: optim.LevenbergMarquardt([torch.ones(1, requires_grad=True)], lr=0.1), "damping="),
    ],
)
def test_a_wrong_argument_gets_the_right_one(make, right):
    with pytest.raises(TypeError, match=f"has no argument '.*': .*{right}"):
        make()


@pytest.mark.parametrize("word", sorted(STEP_WORDS))
def test_the_words_of_a_step(word):
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match=rf"gram_backward\(\) has no argument '{word}': "):
        gramjd.gram_backward(w.square(), **{word: [w]})
    assert w.grad is None


@pytest.mark.parametrize(
    ("function", "word"),
    [
        *((gramjd.mtl_backward, word) for word in MTL_WORDS),
        *((function, word) for function in (gramjd.gramian, gramjd.gradient_norms) for word in GRAMIAN_WORDS),
    ],
)
def test_the_words_of_other_functions(function, word):
    with pytest.raises(TypeError, match=rf"{function.__name__}\(\) has no argument '{word}': "):
        function(torch.ones(2, requires_grad=True).square(), **{word: 1})


def test_the_right_word_exists_for_each_wrong_one():
    assert gramjd.UPGrad(preference=[1.0, 2.0], ridge=1e-4) is not None
    assert repr(gramjd.Krum(byzantine=1, selected=2)) == "Krum(byzantine=1, selected=2)"


def test_an_aggregator_of_ones_own_may_use_the_word():
    class Mine(gramjd.aggregation.Weighting):
        def __init__(self, pref_vector):
            self.preference = pref_vector

        def __call__(self, G):
            return self.preference

    assert Mine(pref_vector=3).preference == 3
    with pytest.raises(TypeError, match="norm_eps"):
        Mine(norm_eps=3)


@pytest.mark.parametrize("word", sorted(MTL_WORDS))
def test_the_words_of_a_multi_task_step(word):
    step = foreign_words(MTL_WORDS)(gramjd.mtl_backward)
    trunk = torch.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match=rf"mtl_backward\(\) has no argument '{word}'"):
        step([trunk.sum(), trunk.prod()], **{word: [trunk]})
    assert trunk.grad is None
