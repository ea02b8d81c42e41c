"""The command for a lent GPU: every section in tiny form on a CPU, and what is left when one is cut."""

import json
import math

import pytest
import torch

from gramjd.kernels import devices
from gramjd.kernels.table import TABLE
from gramjd.profiling.bench import cases
from gramjd.profiling.bench.kernels import OPERATIONS
from gramjd.profiling.bench.models import mlp
from gramjd.profiling.gpu import __main__ as command
from gramjd.profiling.gpu import correctness, kernels, models, steps
from gramjd.profiling.gpu.box import Box
from gramjd.profiling.gpu.timer import launches, milliseconds


def section(name, out, minutes="5"):
    assert command.main(["--dry", "--alone", name, "--out", str(out), "--minutes", minutes]) == 0
    return json.loads((out / f"{name}.json").read_text())


def test_correctness(tmp_path):
    found = section("correctness", tmp_path)
    assert found["complete"]
    assert found["right"]
    assert [row["check"] for row in found["rows"]] == ["no synchronisation", "no synchronisation", "capture", "zoo"]
    assert found["rows"][-1]["right"] >= 10
    assert (found["rows"][-1]["wrong"], found["rows"][-1]["not built"]) == (0, 0)


def test_wrong_results_are_found(tmp_path, monkeypatch):
    exact = correctness.gramjd.gramian
    monkeypatch.setattr(correctness.gramjd, "gramian", lambda *args, **options: 1.001 * exact(*args, **options))
    monkeypatch.setattr(correctness, "SOLVERS", {"UPGrad": lambda: lambda G: torch.rand(len(G))})
    found = section("correctness", tmp_path)
    assert not found["right"]
    solved, *_, zoo = found["rows"]
    assert "relative error" in solved["failed"]
    assert zoo["right"] == 0
    assert "tolerance" in zoo["failed"]
    assert len(found["zoo"]["wrong"]) == zoo["wrong"] > 0


def test_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels.calibrate, "LARGE", 32)
    found = section("kernels", tmp_path)
    assert [row["operation"] for row in found["rows"]] == list(OPERATIONS)
    assert set(found["ceilings"]) == {f"flop_per_s_{n}" for n in ("float32", "bfloat16", "tf32")} | {"bytes_per_s"}
    assert min(found["ceilings"].values()) > 0
    assert set(found["devices"]["cpu"]) == {"float32", "float64"}
    auto = found["auto"]
    assert auto["kernels"] == {}  # a CPU has no list
    assert (auto["gain"], auto["worst"], auto["ceiling"]) == (1.2, 0.9, 0.5)
    assert set(auto["measured"]) == set(OPERATIONS)
    for row in found["rows"]:
        assert row["of_bytes"] == pytest.approx(row["bytes_per_s"] / found["ceilings"]["bytes_per_s"])
        assert row["of_flops"] == pytest.approx(row["flop_per_s"] / found["ceilings"]["flop_per_s_float32"])
        assert auto["measured"][row["operation"]] == {
            **{"cases": 1, "failed": 0, "of": 1, "speed_up": 1.0, "least": 1.0},
            **{name: row[name] for name in ("of_bytes", "of_flops", "of_ceiling")},
        }


def test_every_kernel_comes_once_before_any_comes_twice():
    chosen = kernels.cases(dry=False)
    assert {case.operation for case in chosen} == {name for name, _ in TABLE}
    first = [case.operation for case in chosen[: 2 * len(OPERATIONS)]]
    assert sorted(first) == sorted(2 * list(OPERATIONS))
    assert len(set(chosen)) == len(chosen) == 2 * sum(len(operation.shapes) for operation in OPERATIONS.values())


def measured(operation, speed_up=2.0, of_flops=0.6, torch_ms=1.0, dtype="float32"):
    row = {"operation": operation, "dtype": dtype, "speed_up": speed_up, "torch_ms": torch_ms}
    return row | {"of_bytes": 0.1, "of_flops": of_flops, "of_ceiling": max(0.1, of_flops)}


def test_auto_takes_what_is_faster_and_never_much_slower():
    ratios = {"a": (2.0, 1.5), "b": (4.0, 0.8), "c": (1.19, 1.19), "d": (1.0, 1.5)}
    rows = [measured(name, ratio) for name, pair in ratios.items() for ratio in pair]
    rows += [measured("e", 9.0), {"operation": "e", "dtype": "float32", "failed": "relative error 1"}]
    rows += [{"operation": "f", "dtype": "float32", "failed": "relative error 1"}] * 2
    found = kernels.auto(rows, "sm_90", dict.fromkeys("abcdef", 2))
    assert found["kernels"] == {"sm_90": ["a", "d"]}
    assert found["measured"]["a"]["speed_up"] == pytest.approx(math.sqrt(3))
    assert found["measured"]["b"]["least"] == 0.8
    assert found["measured"]["e"]["failed"] == 1
    assert found["measured"]["f"] == {"cases": 2, "failed": 2, "of": 2}


def test_auto_takes_what_was_measured_at_all_its_shapes():
    assert kernels.auto([measured("a")], "sm_90", {"a": 2})["kernels"] == {"sm_90": []}
    assert kernels.auto([measured("a")] * 2, "sm_90", {"a": 2})["kernels"] == {"sm_90": ["a"]}


@pytest.mark.parametrize(("long", "longest", "taken"), [(0.6, 0.6, True), (0.6, 0.4, False), (0.4, 0.6, False)])
def test_auto_takes_what_reaches_half_of_the_ceiling_where_most_is_to_be_done(long, longest, taken):
    """In the slower of both types; a small case, which lasts as long as a launch, does not count."""
    rows = [measured("a", of_flops=0.01, torch_ms=0.01, dtype=dtype) for dtype in ("float32", "bfloat16")]
    rows += [measured("a", of_flops=long, torch_ms=2.0), measured("a", 2.0, longest, 9.0, "bfloat16")]
    found = kernels.auto(rows, "sm_100", {"a": 4})
    assert found["measured"]["a"]["of_ceiling"] == min(long, longest)
    assert found["kernels"] == {"sm_100": ["a"] if taken else []}


def test_what_a_run_found_can_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_loaded", None)
    constants = {"flops": 1e13, "half": 60.0, "elements": 4e11, "call": 5e-6}
    found = {"devices": {"cuda": {"float32": constants}}, "auto": {"kernels": {"sm_90": ["rows"]}}}
    path = tmp_path / kernels.FILE
    path.write_text(json.dumps(kernels.to_load(found, None).to_dict()))
    devices.load(path)
    assert devices.kernels("sm_90") == ("rows",)
    assert devices.measured("cuda", torch.float32).flops == 1e13
    refused = found | {"devices": {"cuda": {"refused": "two passes disagree"}}}
    assert kernels.to_load(refused, "NVIDIA X").devices == {}


def test_table_shows_kernels(tmp_path):
    taken = kernels.auto([measured("rows"), measured("norms.pair", 0.5)], "sm_90", {"rows": 1, "norms.pair": 1})
    (tmp_path / "kernels.json").write_text(json.dumps({"rows": [], "skipped": [], "auto": taken}))
    *_, first, second, _, last = command.table(tmp_path, {"kernels": "complete"}).splitlines()
    assert first.split() == ["rows", "1", "2.00", "2.00", "10%", "60%"]
    assert second.split() == ["norms.pair", "1", "0.50", "0.50", "10%", "60%"]
    assert last == "kernels for auto on sm_90: rows"


def test_steps(tmp_path):
    found = section("steps", tmp_path)
    rows = {(row["model"], row["contender"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == sum(len(item.contenders) for item in models.items("cpu", True))
    assert [row for row in rows.values() if "failed" in row] == []
    for (model, contender), row in rows.items():
        if "refused" not in row:
            plain = rows[model, "plain"]
            assert row["time_over_plain"] == pytest.approx(row["ms"] / plain["ms"])
            assert row["memory_over_plain"] == pytest.approx(row["peak_bytes"] / plain["peak_bytes"])
            assert row["launches"] > 0
        else:
            assert contender.startswith("torchjd") or contender.endswith("triton")


def test_models_are_what_their_names_say():
    items = models.items("cpu", False)
    assert len({(item.name, item.m) for item in items}) == len(items)
    assert {name for item in items for name in item.contenders} <= set(steps.CONTENDERS)
    assert all(item.contenders[0] == "plain" for item in items)
    with torch.device("meta"):
        assert sum(p.numel() for p in mlp((8192,) * 17).parameters()) == 16 * (8192**2 + 8192) == 1073872896
    config = pytest.importorskip("transformers").GPT2Config()
    assert (config.n_layer, config.n_embd, config.n_head, config.vocab_size) == (12, 768, 12, 50257)
    work = models.gpt2(3, "cpu", torch.bfloat16, length=6, tiny=True)
    assert work.losses().shape == (3,)
    assert {p.dtype for p in work.model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(work.losses(), work.losses(), rtol=0, atol=0)  # no dropout


def test_weights(tmp_path):
    found = section("weights", tmp_path)
    assert {row["m"] for row in found["rows"]} == {4, 8}
    assert len(found["rows"]) == 2 * 4 * 4
    for row in found["rows"]:
        assert row["over_eigh"] == pytest.approx(row["ms"] / row["eigh_ms"])
        assert row["error"] is None or row["error"] <= 1e-3
    json.dumps(found)


def test_a_cut_keeps_the_rows(tmp_path):
    now = [0.0]
    box = Box(tmp_path / "x.json", 10.0, dry=True, clock=lambda: now[0])
    assert json.loads((tmp_path / "x.json").read_text()) == {"complete": False, "rows": [], "skipped": []}
    for item in box.within(["a", "b", "c"]):
        box.attempt({"item": item}, lambda: {"left": box.left()})
        assert json.loads((tmp_path / "x.json").read_text())["rows"][-1]["item"] == item  # at once
        now[0] += 6
    found = json.loads((tmp_path / "x.json").read_text())
    assert [row["left"] for row in found["rows"]] == [10, 4]
    assert found["skipped"] == ["c"]
    assert list(tmp_path.iterdir()) == [tmp_path / "x.json"]


def test_a_row_that_fails_is_written_down_and_the_next_one_runs(tmp_path):
    box = Box(tmp_path / "x.json", 10.0, dry=True)
    box.attempt({"row": 1}, lambda: {"value": 1 / 0})
    box.attempt({"row": 2}, lambda: {"value": 1.0})
    assert box.found["rows"] == [{"row": 1, "failed": "ZeroDivisionError: division by zero"}, {"row": 2, "value": 1.0}]


def test_sections_run_one_after_the_other_and_a_table_ends_it(tmp_path, capfd):
    out = ["--out", str(tmp_path), "--minutes", "4", "--sections", "kernels,weights"]
    assert command.main(["--dry", *out]) == 0
    said = capfd.readouterr().out
    facts = json.loads(said.splitlines()[0])
    assert facts["problem"] is None
    assert {"torch", "gramjd", "python"} <= set(facts["versions"])
    assert json.loads((tmp_path / "environment.json").read_text()) == facts
    assert said.index("ceilings and kernels") < said.index("weights against eigh")
    rows = [line.split() for line in said.splitlines()]
    assert ["kernels", "complete", str(len(OPERATIONS)), "0", "0"] in rows
    assert ["weights", "complete", "32", "0", "0"] in rows
    assert said.splitlines()[-1] == "kernels for auto: none, as this is no GPU"
    assert not (tmp_path / kernels.FILE).exists()  # constants of tiny sizes are of no use


def test_a_section_beyond_its_box_is_ended(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(command, "GRACE", -0.99)  # ended before it has imported torch
    assert command.main(["--dry", "--out", str(tmp_path), "--minutes", "0", "--sections", "weights"]) == 0
    assert ["weights", "cut", "0", "0", "0"] in [line.split() for line in capfd.readouterr().out.splitlines()]


def test_table_shows_steps(tmp_path):
    row = {"model": "net", "m": 8, "contender": "gramjd Mean", "ms": 3.0, "launches": 70}
    row |= {"time_over_plain": 1.5, "captured_over_plain": 1.25, "memory_over_plain": 1.1}
    refused = {"model": "net", "m": 8, "contender": "torchjd Mean", "refused": "no"}
    (tmp_path / "steps.json").write_text(json.dumps({"rows": [row, refused], "skipped": []}))
    head, _, last = command.table(tmp_path, {"steps": "complete"}).splitlines()[-3:]
    assert head.split() == ["model", "m", "contender", "ms", "time", "captured", "memory", "launches"]
    assert last.split() == ["net", "8", "gramjd", "Mean", "3.00", "1.50", "1.25", "1.10", "70"]


def test_table_names_what_failed(tmp_path):
    rows = [{"check": "zoo", "failed": "AssertionError: 3 entries"}, {"check": "capture", "error": 0.0}]
    (tmp_path / "correctness.json").write_text(json.dumps({"rows": rows, "skipped": ["a"]}))
    text = command.table(tmp_path, {"correctness": "complete", "kernels": "ended with status 1"})
    assert "failed: correctness: zoo: AssertionError: 3 entries" in text
    assert ["kernels", "ended", "with", "status", "1", "0", "0", "0"] in [line.split() for line in text.splitlines()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_needs_a_gpu_or_dry(tmp_path, capsys):
    assert command.main(["--out", str(tmp_path / "gpu")]) == 1
    assert "there is no CUDA device here" in json.loads(capsys.readouterr().out)["problem"]
    assert not (tmp_path / "gpu").exists()


def test_median_and_launches():
    calls = []
    assert milliseconds(lambda: calls.append(1), "cpu", 0.0) >= 0
    assert len(calls) == 2 + 5
    x = torch.ones(3)
    assert launches(lambda: x.add(x).add(x), "cpu") == launches(lambda: x.add(x), "cpu") + 1


def test_items_of_the_cpu_table_are_those_of_the_cpu_table():
    titles = {case.title for name, case in cases.CASES.items() if not name.startswith("tiny")}
    assert titles <= {item.name for item in models.items("cpu", False)}
