"""What the doctor finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from raysegment.cli.app import app
from raysegment.hardware import available_cores, available_memory
from raysegment.runtime import doctor as module
from raysegment.runtime.doctor import Space, doctor


def test_what_this_machine_has(tmp_path: Path) -> None:
    found = doctor(environment={}, home=tmp_path)
    assert found.cores == available_cores() <= found.logical_cpus == os.cpu_count()
    assert found.memory_bytes <= psutil.virtual_memory().total
    assert found.versions["python"] == sys.version.split()[0]
    assert found.versions["torch"] is not None
    assert found.versions["numpy"] == __import__("numpy").__version__
    assert found.disks["output"].path == str(Path.cwd())
    assert found.ray_address is None
    assert not [w for w in found.warnings if "RAY_ADDRESS" in w or "auth_token" in w]


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, True), (0o600, False)])
def test_a_token_that_others_can_read(tmp_path: Path, mode: int, warned: bool) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret-words")
    token.chmod(mode)
    found = doctor(environment={}, home=tmp_path)
    assert any(f"mode {mode:04o}" in w for w in found.warnings) is warned
    assert "secret-words" not in json.dumps(found.to_json())
    assert token.stat().st_mode & 0o777 == mode


def test_a_cluster_in_the_environment(tmp_path: Path) -> None:
    found = doctor(environment={"RAY_ADDRESS": "10.0.0.1:6379", "RAY_TMPDIR": str(tmp_path)}, home=tmp_path)
    assert any("10.0.0.1:6379" in w for w in found.warnings)
    assert found.ray_address == "10.0.0.1:6379"
    assert found.disks["Ray"].path == str(tmp_path / "ray")


def test_what_is_missing_small_or_full_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_version", lambda name: None if name in ("zarr", "rasterio") else "1")
    monkeypatch.setattr(module, "_space", lambda path: Space(str(path), 100 << 20, 1 << 20))
    warnings = "\n".join(doctor(environment={}, home=tmp_path).warnings)
    assert "zarr is not installed" in warnings
    assert "raysegment[geo]" in warnings
    assert "/dev/shm has 0.1 GiB" in warnings
    assert "disk" in warnings
    assert "99% full" in warnings


def test_memory_is_the_container_s_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("1048576\n")
    assert available_memory(tmp_path) == 1 << 20
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2097152\n")
    assert available_memory(tmp_path) == 2 << 20


def test_the_command() -> None:
    answer = CliRunner().invoke(app, ["doctor", "--json"])
    assert answer.exit_code == 0, answer.stderr
    assert list(json.loads(answer.stdout)) == [
        *("versions", "cores", "logical_cpus", "memory_bytes", "shared_memory", "gpus", "cpu_bf16", "disks"),
        *("ray_address", "warnings"),
    ]
    text = CliRunner().invoke(app, ["doctor"]).stdout
    assert "torch" in text
    assert "memory" in text


def test_it_does_not_even_import_ray(tmp_path: Path) -> None:
    code = "import sys; import raysegment; raysegment.doctor(); print('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.stdout == "False\n"
    assert not (tmp_path / ".ray").exists()
