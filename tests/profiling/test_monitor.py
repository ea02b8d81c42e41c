"""The monitor's numbers against their definitions on a Jacobian that is known."""

import csv
import math
import sys

import pytest
import torch

from gramjd import GradDrop, GramStep, UPGrad, gram_backward
from gramjd.errors import GramjdError, InputError
from gramjd.profiling import CsvWriter, FunctionWriter, GramMonitor, TensorBoardWriter
from gramjd.profiling.monitor import NAMES


def by_definition(J, w):
    J, w = J.double(), w.double()
    m = len(J)
    norms = [float(g.norm()) for g in J]
    cosines = [
        float(J[i] @ J[j]) / (norms[i] * norms[j]) if norms[i] * norms[j] else 0.0
        for i in range(m)
        for j in range(i + 1, m)
    ]
    negative = [c for c in cosines if c < 0]
    update, mean = w @ J, J.mean(0)
    return {
        "mean_norm": sum(norms) / m,
        "largest_norm": max(norms),
        "smallest_norm": min(norms),
        "mean_cosine": sum(cosines) / len(cosines),
        "smallest_cosine": min(cosines),
        "conflicting_pairs": len(negative) / len(cosines),
        "conflict_depth": -sum(negative) / len(negative) if negative else 0.0,
        "effective_rank": sum(n * n for n in norms) ** 2 / float((J @ J.T).square().sum()),
        "cosine_to_mean": float(update @ mean) / float(update.norm() * mean.norm()),
        "length_over_mean": float(update.norm() / mean.norm()),
        "worsened_losses": sum(float(g @ update) < -1e-5 * float(g.norm() * update.norm()) for g in J) / m,
        "smallest_weight": float(w.min()),
        "largest_weight": float(w.max()),
        "smallest_contribution": min(float(x) * n for x, n in zip(w, norms, strict=True)),
        "largest_contribution": max(float(x) * n for x, n in zip(w, norms, strict=True)),
    }


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
@pytest.mark.parametrize("aggregator", [UPGrad(), lambda G: torch.linspace(-0.5, 1, len(G))])
def test_numbers(scale, aggregator):
    J = scale * torch.randn(5, 7)
    J[3] = -0.7 * J[2]
    w = aggregator(J @ J.T).float()
    monitor = GramMonitor()
    monitor.update(GramStep(w, J @ J.T))
    expected = by_definition(J, w)
    found = monitor.latest()
    assert list(found) == list(NAMES)
    for name in NAMES:
        assert found[name] == pytest.approx(expected[name], rel=2e-3, abs=1e-4 if "cos" in name else 0), name


def test_orthogonal_parallel_and_zero():
    monitor = GramMonitor()
    monitor.update(GramStep(torch.ones(4), 9 * torch.eye(4)))
    assert monitor.latest()["effective_rank"] == pytest.approx(4)
    monitor.update(GramStep(torch.ones(4), torch.ones(4, 4)))
    assert monitor.latest()["effective_rank"] == pytest.approx(1)
    assert monitor.spectrum() == pytest.approx([4, 0, 0, 0], abs=1e-9)
    monitor.update(GramStep(torch.ones(3), torch.zeros(3, 3)))
    assert all(math.isfinite(number) for number in monitor.latest().values())
    assert monitor.latest()["cosine_to_mean"] == 0
    monitor.update(GramStep(torch.ones(1), torch.ones(1, 1)))
    assert monitor.latest()["conflicting_pairs"] == 0


def test_training_with_wrap_and_history():
    monitor = GramMonitor()
    backward = monitor.wrap(gram_backward)
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    for _ in range(3):
        step = backward(torch.stack([w[0] ** 2, (w[0] - 2) ** 2 + w[1] ** 2]))
    assert monitor.history()["step"] == [0, 1, 2]
    assert monitor.weights()[-1] == step.weights.tolist()
    assert monitor.history()["worsened_losses"] == [0, 0, 0]  # UPGrad's promise
    assert monitor.cosines()[0, 1] == pytest.approx(-1 / math.sqrt(5), rel=1e-5)  # (2, 0) and (-2, 4)


def test_refuses():
    with pytest.raises(InputError, match="no step yet"):
        GramMonitor().latest()
    with pytest.raises(InputError, match=r"shape \(2, 2\) with 3 weights"):
        GramMonitor().update(GramStep(torch.ones(3), torch.eye(2)))


def test_csv(tmp_path):
    with CsvWriter(tmp_path / "a" / "log.csv") as log:
        log.write(3, {"x": 0.5, "y": 2.0})
        log.write(4, {"y": 1.0, "x": 0.25})
    with open(tmp_path / "a" / "log.csv") as file:
        assert list(csv.DictReader(file)) == [
            {"step": "3", "x": "0.5", "y": "2.0"},
            {"step": "4", "x": "0.25", "y": "1.0"},
        ]


def test_missing_tensorboard_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(GramjdError, match=r"gramjd\[tensorboard\]"):
        TensorBoardWriter(tmp_path)


def test_plots_show_what_was_seen(tmp_path):
    from matplotlib.figure import Figure

    from gramjd.profiling import monitor_figures

    monitor = GramMonitor()
    for n in range(4):
        monitor.update(GramStep(torch.tensor([0.5, 0.25 * n]), torch.tensor([[1.0, -0.5], [-0.5, 1.0]])))
    axes = Figure().subplots(1, 3)
    image = monitor_figures.draw_cosines(axes[0], monitor).images[0]
    assert image.get_array().tolist() == [[1.0, -0.5], [-0.5, 1.0]]
    lines = monitor_figures.draw_weights(axes[1], monitor).lines
    assert [line.get_ydata().tolist() for line in lines] == [[0.5] * 4, [0.0, 0.25, 0.5, 0.75]]
    lines = monitor_figures.draw_conflict(axes[2], monitor).lines
    assert lines[0].get_ydata().tolist() == [1.0] * 4
    assert monitor_figures.save_monitor(monitor, tmp_path / "m.png").stat().st_size > 5000


def test_steps_without_a_gramian_are_not_watched():
    monitor = GramMonitor()
    layer = torch.nn.Linear(3, 2)
    losses = layer(torch.randn(4, 3)).square().sum(1)
    assert monitor.wrap(gram_backward)(losses, GradDrop()) is None
    assert layer.weight.grad is not None
    assert monitor.steps == []
    with pytest.raises(InputError, match=r"got a tensor; .* GramStep\(aggregator\(G\), G\)"):
        GramMonitor().update(torch.eye(2))
    with pytest.raises(InputError, match="got None: a coordinatewise aggregator makes no Gramian"):
        monitor.update(None)


def two(a, b, names, weights=(0.5, 0.5)):
    """A step of two gradients [d]."""
    J = torch.tensor([a, b])
    return GramStep(torch.tensor(weights), J @ J.T, names)


def test_numbers_by_name():
    monitor = GramMonitor()
    monitor.update(two([3.0, 4.0], [-2.0, 0.0], ("depth", "normals"), (0.5, 100.0)))
    found = monitor.latest()
    assert found["weight/normals"] == 100
    assert found["norm/depth"] == 5
    assert found["contribution/normals"] == 200
    assert found["cosine/depth/normals"] == pytest.approx(-0.6)
    assert [name for name in found if "/" not in name] == list(NAMES)


def test_a_loss_that_is_missing_is_nan_in_the_history():
    monitor = GramMonitor(names=["a", "b", "c"])
    monitor.update(two([1.0, 0.0], [0.0, 2.0], ("c", "a")))  # another order
    monitor.update(two([1.0, 0.0], [1.0, 0.0], ("a", "b")))
    history = monitor.history()
    assert [key for key in history if key.startswith("cosine/")] == ["cosine/a/b", "cosine/a/c", "cosine/b/c"]
    assert history["norm/a"] == [2, 1]
    assert math.isnan(history["norm/b"][0])
    assert history["cosine/a/c"][0] == 0
    assert history["cosine/a/b"][1] == 1
    assert list(history) == ["step", *monitor.latest()]


def test_the_window_is_bounded_and_reset():
    monitor = GramMonitor(window=3)
    for n in range(10):
        monitor.update(GramStep(torch.full((2,), float(n)), torch.eye(2)))
    assert monitor.steps == [7, 8, 9]
    assert monitor.weights() == [[7, 7], [8, 8], [9, 9]]
    assert [len(column) for column in monitor.history().values()] == [3] * (len(NAMES) + 1)
    monitor.reset()
    assert monitor.steps == []
    with pytest.raises(InputError, match="no step yet"):
        monitor.latest()
    monitor.update(GramStep(torch.ones(2), torch.eye(2)))
    assert monitor.steps == [0]


@pytest.mark.parametrize(("options", "words"), [({"window": 0}, "window must be an int"), ({"names": "ab"}, "names")])
def test_options_are_checked(options, words):
    with pytest.raises(InputError, match=words):
        GramMonitor(**options)


def test_a_huge_weight_stands_beside_what_it_contributes():
    monitor = GramMonitor()
    monitor.update(two([1e-9, 0.0], [1.0, 1.0], None, (5e9, 0.5)))
    assert monitor.latest()["largest_weight"] == pytest.approx(5e9)
    assert monitor.latest()["largest_contribution"] == pytest.approx(5)


def test_a_function_gets_a_dictionary():
    seen = []
    with FunctionWriter(lambda numbers, step: seen.append((step, numbers)), prefix="train/") as log:
        log.write(3, {"x": 0.5})
    assert seen == [(3, {"train/x": 0.5})]
    with pytest.raises(InputError, match="log is a int; expected a function"):
        FunctionWriter(3)


def test_a_new_column_says_what_to_do(tmp_path):
    with CsvWriter(tmp_path / "log.csv") as log:
        log.write(0, {"x": 0.5, "y": 1.0})
        log.write(1, {"x": 0.5})
        with pytest.raises(InputError, match=r"no column for z: .*GramMonitor\(names="):
            log.write(2, {"z": 0.5})


def test_tensorboard_is_closed_at_the_end_of_the_block(monkeypatch, tmp_path):
    from gramjd.profiling import writers

    class Summary:
        def __init__(self, folder):
            self.points, self.closed = [], False

        def add_scalar(self, name, number, step):
            self.points.append((name, number, step))

        def close(self):
            self.closed = True

    monkeypatch.setattr(writers, "require", lambda *_: type("module", (), {"SummaryWriter": Summary}))
    with TensorBoardWriter(tmp_path) as log:
        log.write(1, {"x": 0.5})
        summary = log._writer
    assert summary.points == [("gramjd/x", 0.5, 1)]
    assert summary.closed


def test_named_weights_are_drawn_with_their_names():
    from matplotlib.figure import Figure

    from gramjd.profiling import monitor_figures

    monitor = GramMonitor()
    monitor.update(two([1.0, 0.0], [0.0, 2.0], ("depth", "normals")))
    lines = monitor_figures.draw_weights(Figure().subplots(), monitor).lines
    assert [line.get_label() for line in lines] == ["depth", "normals"]
