"""Every example runs, cut short, and does what it says."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from gramjd.profiling.flops import _Counter

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
    "fairness": (150, lambda found: fair(**{way.replace(" ", "_"): numbers for way, numbers in found.items()})),
    "influence": (20, lambda found: found[0] >= 3 and found[1] > 0.75),  # of 4 wrong labels; the correlation
    "noise_scale": (25, lambda found: all(noise(**row) for row in found) and found[1]["rank"] < found[0]["rank"]),
    "partial_jacobian": (60, lambda found: partial(**found)),
}


def fair(all_samples_alike, all_groups_alike, no_group_worse):
    """Each is the loss of the worst group, the mean over people, and the share made worse."""
    plain, mean, upgrad = all_samples_alike, all_groups_alike, no_group_worse
    return max(mean[0], upgrad[0]) < plain[0] / 2 and upgrad[2] == 0 and min(plain[2], mean[2]) > 0.1


def noise(noise_scale, separate, entropy_rank, rank):
    """Two estimates from different samples; both ranks are between one and the number of losses."""
    return 0.75 < noise_scale / separate < 1.33 and 1 < rank < entropy_rank < 32


def partial(cosine_partial, cosine_mean, worsened_partial, worsened_mean, accuracy):
    return cosine_mean < cosine_partial < 1 and worsened_partial < worsened_mean / 2 and accuracy > 0.9


def together(printed):
    found = re.findall(r"(\w+): loss of the worst client ([\d.]+); (\d+) rounds of 60 went against", printed)
    (samples, mean, upgrad) = (float(loss) for _, loss, _ in found)
    assert [way for way, _, _ in found] == ["samples", "mean", "upgrad"]
    return upgrad < mean < samples / 2 and int(found[2][2]) == 0 < int(found[1][2]) < int(found[0][2])


# Started by torchrun, with the number of ranks.
ON_RANKS = {
    "data_parallel": (2, lambda printed: re.search(r"accuracy (0\.9\d+|1\.0+) with 2 ranks", printed)),
    "federated": (3, together),
}
BY_WORK = {"character_model"}  # by a clock, which is here the number of operations


def test_every_example_is_checked():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(CHECKS) | set(ON_RANKS) | BY_WORK


@pytest.mark.parametrize("name", CHECKS)
def test_example(name, capsys):
    steps, check = CHECKS[name]
    outcome = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](steps)
    assert check(outcome), outcome
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", ON_RANKS)
def test_example_on_ranks(name):
    ranks, check = ON_RANKS[name]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run([*command, EXAMPLES / f"{name}.py"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert check(done.stdout), done.stdout


def test_tokens_as_objectives_lose_at_equal_work(capsys):
    main = runpy.run_path(str(EXAMPLES / "character_model.py"))["main"]
    with _Counter() as counter:
        found = main(30, lambda: counter.operations)
    work, loss = ({way: numbers[k] for way, numbers in found.items()} for k in (1, 2))
    assert 1 < work["sequence"] / work["plain"] < 6
    assert 20 < work["token"] / work["plain"] < 60
    assert loss["token"] < loss["plain"]  # ahead after as many steps
    assert work["token"] <= work["plain, as long as token"] < 1.1 * work["token"]
    assert loss["plain, as long as token"] < loss["token"] / 2
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", [*CHECKS, *ON_RANKS, *BY_WORK])
def test_example_fits_a_screen(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60
