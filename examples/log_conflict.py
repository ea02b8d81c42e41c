"""Training with UPGrad, and a log of how the gradients conflict: a CSV file and a picture, at no further pass."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.profiling import CsvWriter, GramMonitor


def main(steps: int = 200, folder: Path | None = None) -> GramMonitor:
    """Train on noisy clusters; with a folder, write conflict.csv and conflict.png there."""
    torch.manual_seed(0)
    centres = torch.randn(10, 20)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    monitor = GramMonitor()
    for _ in range(steps):
        labels = torch.randint(10, (32,))
        losses = cross_entropy(model(centres[labels] + torch.randn(32, 20)), labels, reduction="none")
        optimizer.zero_grad()
        monitor.update(gramjd.gram_backward(losses))
        optimizer.step()
    print("  ".join(f"{name} {value:.3g}" for name, value in monitor.latest().items()))
    if folder is not None:
        write(monitor, folder)
    return monitor


def write(monitor: GramMonitor, folder: Path) -> None:
    """All steps as CSV, and the three plots."""
    from gramjd.profiling.monitor_figures import save_monitor

    names, *columns = zip(*monitor.history().items(), strict=True)
    with CsvWriter(folder / "conflict.csv") as log:
        for step, *numbers in zip(*columns[0], strict=True):
            log.write(int(step), dict(zip(names[1:], numbers, strict=True)))
    print(save_monitor(monitor, folder / "conflict.png"))


if __name__ == "__main__":
    main(folder=Path(sys.argv[1]) if len(sys.argv) > 1 else None)
