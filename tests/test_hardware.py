"""Cores and devices, from made cgroup files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from raysegment import hardware
from raysegment.errors import UsageError
from raysegment.hardware import available_cores, has_fast_bf16, pick_device


def _v1(root: Path, quota: int) -> Path:
    (root / "cpu").mkdir()
    (root / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (root / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    return root


def test_the_quota_cuts_the_cores_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert available_cores(tmp_path) == 8
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cores(tmp_path) == 8
    (tmp_path / "cpu.max").write_text("350000 100000\n")
    assert available_cores(tmp_path) == 3
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert available_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("9000000 100000\n")
    assert available_cores(tmp_path) == 8


@pytest.mark.parametrize(("quota", "cores"), [(-1, 8), (200000, 2)])
def test_the_old_cgroups_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: int, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert available_cores(_v1(tmp_path, quota)) == cores


def test_bf16_on_a_cpu_needs_amx_or_to_be_seen_to_be_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: frozenset({"amx_bf16", "amx_tile"}))
    monkeypatch.setattr(hardware, "_bf16_speedup", lambda: 0.0)
    assert has_fast_bf16("cpu")
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert not has_fast_bf16("cpu")
    monkeypatch.setattr(hardware, "_bf16_speedup", lambda: hardware.WORTH_BF16)
    assert has_fast_bf16("cpu")
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: frozenset({"avx512f"}))
    assert not has_fast_bf16("cpu")


def test_what_bf16_gains_is_measured_and_leaves_no_trace() -> None:
    threads, numbers = torch.get_num_threads(), torch.get_rng_state()
    assert 0.02 < hardware._bf16_speedup.__wrapped__() < 50
    assert torch.equal(torch.get_rng_state(), numbers)
    assert torch.get_num_threads() == threads


def test_a_gpu_is_taken_when_there_and_missed_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device().type == "cuda"
    assert pick_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device().type == "cpu"
    with pytest.raises(UsageError, match="no usable GPU"):
        pick_device("cuda")
    with pytest.raises(UsageError, match="'tpu' is not known"):
        pick_device("tpu")
