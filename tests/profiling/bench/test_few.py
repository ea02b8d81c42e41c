"""The benchmarks of few losses and of foreign models measure what they say."""

import json

import pytest
import torch

import gramjd
from gramjd.cli import main
from gramjd.errors import InputError
from gramjd.profiling.bench import few, foreign, sweep, sweep_tables, tables
from gramjd.profiling.bench.__main__ import BENCHMARKS
from gramjd.profiling.methods import RefusalError
from tests.oracle import oracle_gramian, relative_error


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [name for name in few.CASES if "1024" not in name])
def test_all_contenders_make_the_same_step(name):
    """But TorchJD, whose solver adds 1e-4 to the diagonal."""
    grads = {}
    for contender, make in few.CONTENDERS.items():
        if contender in ("plain", "TorchJD"):
            continue
        work = few.CASES[name].build()
        make(work)()
        grads[contender] = torch.cat([p.grad.flatten() for p in work.parameters])
    expected = grads.pop("m passes")
    assert len(grads) == 4
    for contender, found in grads.items():
        assert relative_error(found, expected) < 1e-4, contender


def test_torchjd_makes_it_too():
    pytest.importorskip("torchjd")
    steps = []
    for contender in ("TorchJD", "m passes"):
        work = few.CASES["mlp8-2"].build()
        try:
            few.CONTENDERS[contender](work)()
        except RefusalError as error:
            pytest.skip(str(error))
        steps.append(torch.cat([p.grad.flatten() for p in work.parameters]))
    assert relative_error(*steps) < 1e-2


def test_a_run_writes_what_the_table_needs(tmp_path, capsys):
    path = tmp_path / "few.json"
    given = ["few", "--cases", "mlp8-2", "--rounds", "1", "--seconds", "0.1", "--json", str(path)]
    assert main(given, commands=BENCHMARKS, program="bench") == 0
    assert "mlp8-2" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["cases"]["mlp8-2"]["contenders"]["plain"]["ratio"]["median"] == 1
    text = tables.beside(found)
    assert "| MLP of three layers of 8, batch 4 | 2 |" in text
    assert "CPU time of one thread; load of the machine" in text


def test_overheads_are_of_a_visit_and_of_a_call(capsys):
    assert main(["few", "--overheads"], commands=BENCHMARKS, program="bench") == 0
    walk, passes = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines()[2:])
    assert walk > passes > 0


def test_unknown_cases_are_named():
    for command in ("few", "foreign"):
        assert main([command, "--cases", "resnet9000"], commands=BENCHMARKS, program="bench") != 0
    with pytest.raises(InputError, match="resnet9000"):
        few.run(_parsed(few, ["--cases", "resnet9000"]))


def _parsed(module, given):
    from argparse import ArgumentParser

    parser = ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(given)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["lstm", "pinn", "operator"])
def test_foreign_models_of_torch_alone(name):
    work = foreign.CASES[name].make(3)
    losses = work.losses()
    assert losses.shape == (3,)
    expected = oracle_gramian(losses, list(work.parameters.values()))
    assert relative_error(gramjd.gramian(losses, work.parameters).double(), expected) < 1e-3


@pytest.mark.filterwarnings("ignore")
def test_a_foreign_run(tmp_path):
    path = tmp_path / "foreign.json"
    given = ["foreign", "--cases", "pinn", "--rounds", "1", "--seconds", "0.1", "--json", str(path)]
    assert main(given, commands=BENCHMARKS, program="bench") == 0
    found = json.loads(path.read_text())["cases"]["pinn"]
    assert found["m"] == 64
    assert set(found["contenders"]) == set(foreign.CONTENDERS)


# -- the sweep --------------------------------------------------------------------------------------------------------


def _case(**others):
    base = {"independent": True, "error": 1e-15, "checked_in": "float64", "dense": [], "plain_ms": 30.0, "load": 1.0}
    return base | {"ratio": {"median": 2.0}} | others


REPORT = {
    "environment": {
        "date": "2001-02-03",
        "cpu": "a CPU",
        "cores": 2,
        "system": "Linux",
        "versions": {},
        "allocator": "x",
    },
    "clock": "CPU time of one thread",
    "cases": {
        "timm a": _case(),
        "timm b": _case(ratio={"median": 4.0}),
        "timm c": _case(error=0.1, independent=False, dense=["SomeBackward mixes"]),
        "timm d": {"skipped": "ValueError: no", "load": 2.0},
        "timm e": _case(ratio={"median": 9.0}, plain_ms=3.0),
    },
}


def test_the_sweeps_table_counts():
    text = sweep_tables.swept(REPORT)
    assert "| timm | 4 | 3 | 1e-01 | 3 | 0 | 4.00 | 9.00 | 4.00 |" in text
    assert "timm b: 4.00 times a plain step of 30 ms." in text
    assert "timm c: dense rows, SomeBackward mixes." in text
    assert "not built from sizes this small: timm d." in text
    assert "load of the machine: 1.0 to 2.0." in text


class Mixed(torch.nn.Module):
    """Samples that stay apart, or are compared with the mean of the batch."""

    def __init__(self, apart):
        super().__init__()
        self.apart, self.layer, self.head = apart, torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        x = self.layer(x)
        return self.head(x if self.apart else x - x.mean(0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("apart", [True, False])
def test_a_model_that_is_known_is_found_out(apart):
    inputs = torch.randn(sweep.M, 4)

    def losses(model):
        return model(inputs.to(model.layer.weight.dtype)).square().sum(1)

    found = sweep.measured(lambda: (Mixed(apart), losses), seconds=0.05)
    assert found["independent"] is apart
    assert found["error"] < 1e-12
    assert bool(found["dense"]) is not apart
    assert found["ratio"]["median"] > 0


def test_a_model_that_cannot_be_built_is_named():
    def make():
        raise ValueError("no such model")

    assert sweep.measured(make, 0.1) == {"skipped": "ValueError: no such model"}
