"""Profiles of a tiny step: every method, what they count, what is said of those that cannot run."""

import json
from unittest.mock import patch

import pytest
import torch

from gramjd.errors import InputError, LossError
from gramjd.profiling import Profile, profile_step
from gramjd.profiling.marks import ignore
from gramjd.profiling.measure import measure, thinned
from gramjd.profiling.memory import Timeline
from gramjd.profiling.methods import METHODS
from gramjd.profiling.target import build
from tests.profiling import makers

QUICK = {"rounds": 2, "seconds": 0.2}
OWN = ("plain", "gramjd", "gramjd reuse", "jacobian")


@pytest.fixture(scope="module")
def profile():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torch.get_num_threads", lambda: 1)
        return profile_step(makers.make, sweep=(3, 6), methods=OWN, isolate=False, **QUICK)


def test_every_method_has_its_numbers(profile):
    for run, m in zip(profile.runs, (3, 6), strict=True):
        assert run["m"] == m
        assert list(run["methods"]) == list(OWN)
        for name, result in run["methods"].items():
            phases = {"forward", "backward"} if name == "plain" else {"forward", "walk", "weights", "backward"}
            assert set(result["phases"]) == phases
            assert result["peak_bytes"] >= 4 * 66  # the gradients of 66 parameters
            assert result["peak_bytes"] == max(level for _, level in result["timeline"]["levels"])
            assert [phase for _, phase in result["timeline"]["marks"]][-1] == "end"


def test_flops_are_those_of_the_products(profile):
    # forward 5x7 and 7x3; backward both weights and one input
    products = 6 * 2 * (5 * 7 + 7 * 3)
    counted = profile.runs[1]["methods"]["plain"]["flops"]
    assert counted == 2 * products + 6 * 2 * 7 * 3
    assert profile.runs[1]["methods"]["jacobian"]["flops"] > counted


def test_plain_is_the_measure(profile):
    assert profile.runs[0]["methods"]["plain"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    lines = str(profile).splitlines()
    assert lines[0] == "m = 3"
    assert next(line for line in lines if line.startswith("gramjd ")).split()[0] == "gramjd"


def test_a_sweep_that_is_ended_leaves_what_it_had(tmp_path):
    """It is interrupted after the second of four measurements, which are both in the file."""
    told, path = [], tmp_path / "new" / "profile.json"

    def interrupt(line):
        told.append(line)
        if len(told) == 2:
            raise KeyboardInterrupt

    options = {"methods": ("plain", "gramjd"), "isolate": False, **QUICK}
    with pytest.raises(KeyboardInterrupt):
        profile_step(makers.make, sweep=(3, 6), notify=interrupt, path=path, **options)
    (left,) = Profile(**json.loads(path.read_text())).runs
    assert left["m"] == 3
    assert list(left["methods"]) == ["plain", "gramjd"]
    assert "gramjd" in str(Profile(**json.loads(path.read_text())))
    assert [file.name for file in path.parent.iterdir()] == ["profile.json"]


@pytest.mark.parametrize(("high", "noted"), [(1.1, False), (1.6, True)])
def test_wide_quartiles_are_called_noise(profile, high, noted):
    run = json.loads(json.dumps(profile.to_dict()))["runs"][0]
    for result in run["methods"].values():
        result["ratio"] = {"median": 1.0, "low": 1.0, "high": 1.0}
    run["methods"]["jacobian"]["ratio"]["high"] = high
    told = str(Profile({}, {}, [run]))
    assert ("jacobian: noise: the quartiles" in told) == noted
    assert "gramjd: noise" not in told


def test_save_and_read_back(profile, tmp_path):
    profile.save(tmp_path / "new" / "profile.json")
    assert str(Profile(**json.loads((tmp_path / "new" / "profile.json").read_text()))) == str(profile)


@pytest.mark.parametrize("name", OWN[1:])
@pytest.mark.parametrize("aggregator", ["Mean", "UPGrad"])
def test_methods_agree_on_the_update(name, aggregator):
    work = build(makers.make)
    grads = {}
    for method in ("jacobian", name, "plain"):
        METHODS[method](work, aggregator)(ignore)
        grads[method] = torch.cat([p.grad.flatten() for p in work.parameters.values()])
    torch.testing.assert_close(grads[name], grads["jacobian"], rtol=1e-4, atol=1e-6)
    if aggregator == "Mean":
        torch.testing.assert_close(grads[name], grads["plain"], rtol=1e-4, atol=1e-6)


def test_out_of_memory_is_a_row():
    result = measure(makers.large, "jacobian", m=8, limit=40_000_000, **QUICK)  # J alone is 128 MB
    assert result == {"m": 8, "refused": "out of memory"}


def test_refusal_is_a_row():
    with patch.dict(METHODS, {"gramjd": lambda work, aggregator: (_ for _ in ()).throw(ValueError("not this one"))}):
        profile = profile_step(makers.make, methods=["gramjd"], isolate=False, **QUICK)
    assert profile.runs[0]["methods"]["gramjd"]["refused"] == "ValueError: not this one"
    assert "gramjd: ValueError: not this one" in str(profile)


def test_a_process_of_its_own():
    profile = profile_step(makers.make, m=4, methods=["plain"], **QUICK)
    assert profile.runs[0]["m"] == 4
    assert profile.runs[0]["methods"]["plain"]["resident_bytes"] >= 0


@pytest.mark.slow
def test_a_process_that_dies_is_a_row():
    result = profile_step(makers.killed, methods=["plain"], **QUICK).runs[0]["methods"]["plain"]
    assert result == {"refused": "killed, most likely for its memory"}


@pytest.mark.slow
def test_errors_come_back_from_the_process():
    with pytest.raises(LossError, match="single number"):
        profile_step(makers.one_number, methods=["plain"], **QUICK)


@pytest.mark.parametrize("option", [{"methods": ["nosuch"]}, {"aggregator": "nosuch"}])
def test_unknown_names(option):
    with pytest.raises(InputError, match=r"got .* 'nosuch'; expected"):
        profile_step(makers.make, isolate=False, **option)


def test_thinned_keeps_the_peak():
    line = Timeline([(t / 1000, 7 if t == 531 else 1) for t in range(1000)], [])
    short = thinned(line, points=50)
    assert len(short.levels) == 50
    assert (short.peak, line.peak) == (7, 7)
