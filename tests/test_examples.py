"""Every example runs, cut short, and does what it says."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
CHECKS = {
    "instance_wise": (200, lambda accuracy: accuracy > 0.9),
    "multi_task": (150, lambda losses: losses[0] < 0.4 and losses[1] < 50),
    "physics_informed": (150, lambda error: error < 0.2),
    "poisson_1d": (60, lambda error: error < 1e-3),
    "poisson_2d": (60, lambda error: error < 3e-3),
    "burgers": (30, lambda residual: residual < 0.3),
    "wave": (60, lambda error: error < 1e-2),
    "inverse_problem": (30, lambda kappa: 0.095 < kappa < 0.105),
    "profile_my_model": (16, lambda profile: profile.runs[0]["m"] == 16 and "gramjd reuse" in str(profile)),
    "log_conflict": (40, lambda monitor: monitor.latest()["worsened_losses"] == 0),
    "compiled_step": (150, lambda accuracy: accuracy > 0.9),
    "monitor_conflict": (60, lambda log: len(log) == 2 and all(0 <= row["conflicting_pairs"] <= 1 for row in log)),
}


# Started by torchrun, with the number of ranks.
ON_RANKS = {"data_parallel": 2}


def test_every_example_is_checked():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(CHECKS) | set(ON_RANKS)


@pytest.mark.parametrize("name", CHECKS)
def test_example(name, capsys):
    steps, check = CHECKS[name]
    outcome = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](steps)
    assert check(outcome), outcome
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", ON_RANKS)
def test_example_on_ranks(name):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ON_RANKS[name])]
    done = subprocess.run([*command, EXAMPLES / f"{name}.py"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"accuracy (0\.9\d+|1\.0+) with 2 ranks", done.stdout), done.stdout


@pytest.mark.parametrize("name", [*CHECKS, *ON_RANKS])
def test_example_fits_a_screen(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60
