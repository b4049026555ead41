"""JOB.toml: what is read, and what is refused with which line before anything is done."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from raysegment.errors import InputError, UsageError
from raysegment.geometry import Window
from raysegment.nightly.job import JobFile, load_job
from raysegment.nightly.quantities import next_firing, parse_duration

WHOLE = """
name = "nightly-landcover"
[input]
paths = ["s3://scenes/2026/**/*.tif"]
newer_than = "48h"
[model]
path = "models/landcover.safetensors"
[output]
path = "s3://masks/{date}/{stem}.zarr"
[infer]
tile = 256
batch-size = 4
region = [10, 20, 300, 400]
max_memory = "2G"
channels = "0,1,2"
select = "z=3"
workers = 3
[schedule]
cron = "0 2 * * *"
timezone = "Europe/Berlin"
deadline = "6h"
[cluster]
workers = 8
gpus = 8
namespace = "ml"
[report]
path = "reports/{date}"
webhook = "https://example.org/hook"
"""


def read(folder: Path, text: str = WHOLE) -> JobFile:
    (folder / "job.toml").write_text(text)
    return load_job(folder / "job.toml")


def test_a_whole_file(tmp_path: Path) -> None:
    job = read(tmp_path)
    assert job.input.newer_than == timedelta(hours=48)
    assert job.schedule.deadline == timedelta(hours=6)
    assert job.infer.request.region == Window(y=20, x=10, height=400, width=300)
    assert job.infer.request.max_memory == 2 * 10**9
    assert job.infer.request.channels == (0, 1, 2)
    assert (job.infer.request.batch_size, job.infer.select, job.workers) == (4, {"z": 3}, 3)
    assert job.place(job.model.path) == str(tmp_path / "models/landcover.safetensors")
    assert job.ledger_path == "s3://masks/.raysegment/nightly-landcover"
    assert "hook" not in repr(job)


def test_the_ledger_lies_below_what_is_fixed_of_the_output(tmp_path: Path) -> None:
    text = WHOLE.replace("s3://masks/{date}/", "masks/night-{date}/")
    assert read(tmp_path, text).ledger_path == str(tmp_path / "masks/.raysegment/nightly-landcover")
    assert read(tmp_path, text + '[ledger]\npath = "kept"').ledger_path == str(tmp_path / "kept")
    text = WHOLE.replace("s3://masks/{date}/", "{date}/")
    assert read(tmp_path, text).ledger_path == str(tmp_path / ".raysegment/nightly-landcover")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[cluster]", "[clutser]", "unknown key 'clutser'; the nearest is 'cluster'"),
        ("newer_than", "newer_then", "unknown key 'newer_then' in [input]; the nearest is 'newer_than'"),
        ("batch-size", "bach-size", "unknown key 'bach_size' in [infer]; the nearest is 'batch_size'"),
        ("0 2 * * *", "0 2 31 2 *", "[schedule] cron: '0 2 31 2 *' never fires"),
        ("0 2 * * *", "0 2 * *", "[schedule] cron: '0 2 * *' is no cron line"),
        ("Europe/Berlin", "Europe/Atlantis", "[schedule] timezone: 'Europe/Atlantis' is no time zone"),
        ('"6h"', '"six"', "[schedule] deadline: 'six' is no duration"),
        ('"6h"', '"0h"', "[schedule] deadline: '0h' is no time at all"),
        ("{stem}.zarr", "{stme}.zarr", "unknown placeholder {stme}; the nearest is {stem}"),
        ("{stem}.zarr", "{stem.zarr", "[output] path: 's3://masks/{date}/{stem.zarr': "),
        ("{stem}.zarr", "{stem!r}.zarr", "unknown placeholder {stem}"),
        ("{stem}.zarr", "{stem}.tif", "masks as TIFF are not built yet"),
        ("{stem}.zarr", "{stem}", "name it *.zarr"),
        ("reports/{date}", "reports/{stem}", "[report] path: 'reports/{stem}': unknown placeholder {stem}"),
        ("[10, 20, 300, 400]", "[10, 20]", "[infer] region: [10, 20]: give [x, y, width, height]"),
        ("tile = 256", "tile = 0", "[infer] tile: Input should be greater than or equal to 1 (0)"),
        ('path = "models/landcover.safetensors"', "", "[model] path is missing"),
        ('name = "nightly-landcover"', 'name = "a/b"', "name: String should match pattern"),
        ("https://example.org", "mailto:secret", "[report] webhook: give a URL that begins with https://"),
    ],
)
def test_what_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in WHOLE
    with pytest.raises(UsageError) as refused:
        read(tmp_path, WHOLE.replace(old, new, 1))
    message = str(refused.value)
    assert told in message
    assert message.startswith(str(tmp_path / "job.toml"))
    assert "\n" not in message
    assert "secret" not in message


def test_no_file_and_no_toml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the job file"):
        load_job(tmp_path / "none.toml")
    with pytest.raises(InputError, match="not valid TOML"):
        read(tmp_path, "name = ")


def test_durations() -> None:
    assert parse_duration("1h 30m") == timedelta(minutes=90)
    assert parse_duration("1.5d") == timedelta(hours=36)
    for wrong in ("", "6", "h", "6 hours", "-6h", "1e9w", "9999999999w"):
        with pytest.raises(ValueError, match="duration"):
            parse_duration(wrong)


def test_a_leap_day_comes() -> None:
    assert next_firing("0 2 29 2 *", datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2028, 2, 29, 2, tzinfo=UTC)


def test_reading_a_job_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, raysegment.nightly.job; print([m for m in ('torch', 'ray', 'zarr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
