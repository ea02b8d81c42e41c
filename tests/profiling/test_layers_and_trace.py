"""The layer view, traces, and the figures of a profile."""

import json

import pytest

from gramjd import explain
from gramjd.errors import InputError
from gramjd.profiling import figures, profile_step
from gramjd.profiling.layers import layers
from gramjd.profiling.target import build
from gramjd.profiling.trace import save_snapshot, save_trace
from tests.profiling import makers


def test_layers_are_those_of_explain():
    work = build(makers.make)
    found = layers(work, repeats=2)
    plan = explain(work.losses(), work.parameters)
    assert {layer.parameter: layer.operations for layer in found.layers} == {
        name: sum(use.operations for use in plan.uses if use.parameter == name) for name in work.parameters
    }
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    assert [layer.milliseconds for layer in found.layers] == sorted(
        (x.milliseconds for x in found.layers), reverse=True
    )
    assert sum(layer.milliseconds for layer in found.layers) <= 2 * found.walk_milliseconds
    assert len(found.advice) == 3
    assert found.advice[0].startswith(found.layers[0].parameter)
    assert found.layers[0].parameter in str(found)


def test_trace_has_the_phases(tmp_path):
    path = save_trace(build(makers.make), tmp_path / "new" / "trace.json")
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert {"gramjd::walk", "gramjd::weights", "gramjd::backward", "gramjd::phase::forward"} <= names


def test_snapshot_needs_a_gpu(tmp_path):
    with pytest.raises(InputError, match="the losses are on cpu"):
        save_snapshot(build(makers.make), tmp_path / "snapshot.pickle")


def test_figures(tmp_path):
    from matplotlib.figure import Figure

    profile = profile_step(makers.make, sweep=(3, 6), methods=("plain", "gramjd"), isolate=False, rounds=2, seconds=0.1)
    results = dict(profile.runs[1]["methods"]) | {"jacobian": {"refused": "out of memory"}}
    bars, line, curves = Figure().subplots(1, 3)
    figures.draw_times(bars, results)
    assert len(bars.patches) == 2 + 4
    refusal = next(text for text in bars.texts if text.get_text() == "out of memory")
    assert min(bars.get_ylim()) < refusal.get_position()[1] < max(bars.get_ylim()) - 0.3  # not on the axis
    figures.draw_timeline(line, results["gramjd"], "gramjd")
    assert max(line.lines[0].get_ydata()) == pytest.approx(results["gramjd"]["peak_bytes"] / 1e6)
    figures.draw_sweep(curves, profile.runs, "memory")
    assert [list(c.get_xdata()) for c in curves.lines] == [[3, 6], [3, 6]]
    assert {p.name for p in figures.save_all(profile, tmp_path)} == {"times.png", "timelines.png", "sweep.png"}
