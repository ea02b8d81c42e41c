"""Constants are data that name their CPU: how they are read, found and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gramjd.errors import GramjdError
from gramjd.kernels import cost, devices, machine
from gramjd.kernels.devices import ENTRIES, Constants, Measured
from gramjd.kernels.machine import Cpu

ZEN5, ZEN4 = Cpu("AuthenticAMD", 26, 2), Cpu("AuthenticAMD", 25, 17)
XEON = Cpu("GenuineIntel", 6, 143)
KNOWN = Constants(1e9, 5.0, 1e8, 1e-6)
HERE = Measured(machine.this_cpu(), "torch", {"cpu": {"float32": KNOWN, "float64": KNOWN}})


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_loaded", None)


def written(measured: Measured, folder: Path, **changes: Any) -> Path:
    path = folder / "constants.json"
    path.write_text(json.dumps(measured.to_dict() | changes))
    return path


def on(cpu: Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "this_cpu", lambda: cpu)


@pytest.mark.parametrize(
    ("cpu", "expected"), [(ZEN5, "onednn"), (ZEN4, "torch"), (XEON, "torch"), (Cpu("arm"), "torch")]
)
def test_what_is_shipped(cpu: Cpu, expected: str) -> None:
    entry = devices.shipped(cpu)
    assert entry.products == expected
    assert entry.cpu == (cpu if cpu in (ZEN5, ZEN4) else None)


def test_the_shipped_entries_are_sound() -> None:
    *named, other = ENTRIES
    assert other.cpu is None
    assert len({entry.cpu for entry in named}) == len(named)
    assert all(entry.about for entry in ENTRIES)
    assert set(other.devices["cpu"]) == {"float32", "float64"}
    for entry in named:
        if entry.products == "onednn":  # without its rate, routes would be chosen by that of MKL
            assert entry.devices["cpu"]["float32"].onednn_flops > entry.devices["cpu"]["float32"].flops


def test_a_cpu_without_constants_has_those_of_the_last_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    on(ZEN4, monkeypatch)
    assert devices.measured("cpu", torch.float64) == ENTRIES[-1].devices["cpu"]["float64"]
    on(ZEN5, monkeypatch)
    assert devices.measured("cpu", torch.float32) == ENTRIES[0].devices["cpu"]["float32"]


def test_what_was_not_measured() -> None:
    """Another dtype goes by float32's constants, another device by the CPU's."""
    assert devices.measured("cpu", torch.bfloat16) == devices.measured("cpu", torch.float32)
    assert devices.measured("no such device", torch.float64) == devices.measured("cpu", torch.float64)


def test_a_file_takes_the_place_of_what_is_shipped(tmp_path: Path) -> None:
    before = devices.measured("cpu", torch.float64)
    path = written(HERE._replace(devices={"cpu": {"float32": KNOWN}}), tmp_path)
    cost.load(path)
    assert devices.measured("cpu", torch.float32) == KNOWN
    assert devices.measured("cpu", torch.bfloat16) == KNOWN
    assert devices.measured("cuda", torch.float32) == KNOWN
    assert devices.measured("cpu", torch.float64) == before


def test_no_kernel_is_shipped_as_measured() -> None:
    """Nothing was timed on a GPU. Whoever lists one says in docs/howto/gpu.md what it was measured by."""
    assert ENTRIES[-1].kernels == {"sm_80": (), "sm_90": (), "sm_100": ()}
    assert not any(entry.kernels for entry in ENTRIES[:-1])


def test_kernels_of_a_file_take_the_place_of_those_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        devices, "ENTRIES", (*ENTRIES[:-1], ENTRIES[-1]._replace(kernels={"sm_80": ("rows",), "sm_90": ("rows",)}))
    )
    assert devices.kernels("sm_90") == ("rows",)
    cost.load(written(HERE._replace(kernels={"sm_90": ("norms.pair",), "sm_100": ()}), tmp_path))
    assert devices.kernels("sm_90") == ("norms.pair",)
    assert devices.kernels("sm_80") == ("rows",)  # of which the file does not speak
    assert devices.kernels("sm_100") == devices.kernels("sm_35") == devices.kernels("cpu") == ()


def test_a_kernel_that_is_not_known_is_named(tmp_path: Path) -> None:
    path = written(HERE, tmp_path, kernels={"sm_90": ["outer.prod"]})
    with pytest.raises(GramjdError, match=r"kernels of sm_90 are \['outer.prod'\]; expected some of .*outer.product"):
        cost.load(path)


def test_the_architecture_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    of = {0: (8, 0), 1: (10, 3)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", of.__getitem__)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    devices._capability.cache_clear()
    try:
        names = [devices.architecture(torch.device(where)) for where in ("cuda:0", "cuda:1", "cuda", "cpu", "meta")]
        assert names == ["sm_80", "sm_103", "sm_103", "cpu", "meta"]
        monkeypatch.setattr(torch.version, "cuda", None)  # AMD's devices are of type cuda, too
        assert devices.architecture(torch.device("cuda:0")) == "cuda"
    finally:
        devices._capability.cache_clear()


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    lists: dict[str, tuple[str, ...]] = {"sm_90": ("rows", "norms.pair"), "sm_80": ()}
    whole = HERE._replace(gpu="NVIDIA X", about="a remark", products="onednn", kernels=lists)
    assert devices.read(written(whole, tmp_path)) == whole


def test_a_file_for_another_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(XEON, monkeypatch)
    path = written(HERE._replace(cpu=ZEN5), tmp_path)
    with pytest.raises(
        GramjdError, match="another CPU: AMD family 26 model 2, and this one is Intel family 6 model 143"
    ):
        cost.load(path)
    assert devices.loaded() is None


def test_a_file_that_names_no_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GramjdError, match=r"does not name its CPU; .* gramjd calibrate"):
        cost.load(written(HERE._replace(cpu=None), tmp_path))


@pytest.mark.parametrize(("here", "fits"), [("NVIDIA X", True), ("NVIDIA Y", False), (None, True)])
def test_a_file_for_another_gpu_is_refused(
    here: str | None, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "this_gpu", lambda: here)
    path = written(HERE._replace(gpu="NVIDIA X"), tmp_path)
    if fits:
        cost.load(path)
    else:
        with pytest.raises(GramjdError, match="another GPU: NVIDIA X, and this one is NVIDIA Y"):
            cost.load(path)
    assert (devices.loaded() is not None) == fits


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"devices": {"cpu": {"float32": {"flops": 1}}}}'])
def test_a_file_without_constants_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "constants.json"
    path.write_text(text)
    with pytest.raises(GramjdError, match="gramjd calibrate"):
        cost.load(path)
    with pytest.raises(GramjdError, match="gramjd calibrate"):
        cost.load(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "wrong",
    [
        {"products": "cublas"},
        {"kernels": {"sm_90": ["rows", "outer.prod"]}},
        {"kernels": {"sm_90": "rows"}},
        {"kernels": {"hopper": ["rows"]}},
        {"kernels": ["rows"]},
        {"devices": {"cpu": {"float32": KNOWN._replace(flops=0.0)._asdict()}}},
        {"devices": {"cpu": {"float32": KNOWN._replace(call=-1.0)._asdict()}}},
        {"devices": {"cpu": {"float32": KNOWN._replace(elements=float("nan"))._asdict()}}},
        {"devices": {"cpu": {"float32": KNOWN._replace(half=float("inf"))._asdict()}}},
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(GramjdError, match="holds no constants"):
        cost.load(written(HERE, tmp_path, **wrong))


def test_the_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert cost.user_file() == tmp_path / "gramjd" / "devices.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert cost.user_file() == Path.home() / ".config" / "gramjd" / "devices.json"


DESCRIPTIONS = {
    "AMD": ("processor : 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n", ZEN5),
    "two kinds": ("vendor_id: A\ncpu family: 1\nmodel: 2\n\nvendor_id: A\ncpu family: 1\nmodel: 9\n", Cpu("A", 1, 2)),
    "no numbers": ("vendor_id: A\ncpu family: unknown\n", Cpu("A", 0, 0)),
    "nothing": ("processor: 0\n", None),
    "ARM": ("CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", Cpu("ARM implementer 0x41", 0, 0xD0C)),
}


@pytest.mark.parametrize(("text", "expected"), DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_the_description_of_a_cpu(text: str, expected: Cpu | None) -> None:
    assert machine.of_cpuinfo(text) == expected


def test_the_description_is_read_once_and_from_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.this_cpu.cache_clear()
    first = machine.this_cpu()
    monkeypatch.setattr(machine, "Path", None)
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", "Intel64 Family 6 Model 1 Stepping 1, GenuineIntel")
    assert machine.this_cpu() is first


def test_what_platform_offers_where_there_is_no_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "missing")
    monkeypatch.setattr(machine.platform, "processor", lambda: "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel")
    machine.this_cpu.cache_clear()
    try:
        assert machine.this_cpu() == XEON
    finally:
        machine.this_cpu.cache_clear()
