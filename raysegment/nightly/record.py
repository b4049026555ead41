"""What is said of a run: report.json, the ledger's record of it, and what the report's page shows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysegment.nightly.night import Night
    from raysegment.nightly.run import Run
    from raysegment.nightly.todo import Todo


def record_of(
    run: Run, todo: Todo, night: Night, ended_by: str, exit_code: int, device_wait: float
) -> dict[str, Any]:
    """A plain dictionary, ready for JSON. `ended_by`: "done", "deadline", "interrupted", or what went wrong."""
    job, wall_s = run.job, run.wall_s
    return {
        "name": job.name,
        "run": run.id,
        "started": run.began.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).astimezone(run.began.tzinfo).isoformat(timespec="seconds"),
        "wall_s": wall_s,
        "ended_by": ended_by,
        "exit_code": exit_code,
        "counts": {
            "images": todo.images,
            "done": night.count("done"),
            "skipped": todo.done + len(todo.set_aside),
            "failed": night.count("failed"),
            "left": len(todo.work) - len(night.images),
            "failed_regions": night.failed_regions,
        },
        "throughput": {
            "megapixels": night.megapixels,
            "megapixels_per_s": night.megapixels / wall_s if wall_s else 0.0,
            "images_per_h": 3600 * night.count("done") / wall_s if wall_s else 0.0,
            "workers": night.workers,
            "device_wait": device_wait,
        },
        "model": {"path": job.model.path, "digest": run.model},
        "settings": job.infer.model_dump(mode="json", exclude_defaults=True),
        "images": sorted(night.images, key=lambda image: image["source"]),
        "set_aside": [{"source": source, "reason": reason} for source, reason in todo.set_aside.items()],
        "report": str(run.reports / "report.json"),
    }
