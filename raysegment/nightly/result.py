"""What `batch` answers: frozen, with the keys of --json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BatchResult:
    """What one run did; the keys of its --json."""

    done: int
    """Masks that were made."""
    skipped: int
    """Images that are the same since their mask was made, or since they were set aside."""
    failed: int
    """Images that were set aside now."""
    images: int
    """All that were found; what is missing to the sum of the three was left for the next run by a deadline."""
    wall_s: float
    report: str | None
    """The report.json; report.html lies beside it. None where nothing was ever to be done."""
    exit_code: int = 0
    text: str = ""

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key not in ("exit_code", "text")}

    def summary(self) -> str:
        return self.text


@dataclass(frozen=True)
class StatusResult:
    """The last runs of a job, oldest first."""

    name: str
    runs: list[dict[str, Any]]
    """Each as in its report.json, without the single images."""
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "runs": self.runs}

    def summary(self) -> str:
        if not self.runs:
            return f"{self.name}: no run yet"
        heads = ("started", "took", "done", "skipped", "failed", "left", "MP/s", "exit", "what happened")
        rows = [heads, *(_row(run) for run in self.runs)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        lines = []
        for row in rows:
            cells = [text.rjust(w) for text, w in zip(row[1:-1], widths[1:-1], strict=True)]
            lines.append("  ".join([row[0].ljust(widths[0]), *cells, row[-1]]).rstrip())
        return "\n".join(lines)


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    counts = run["counts"]
    minutes, seconds = divmod(round(run["wall_s"]), 60)
    return (
        run["started"][:16].replace("T", " "),
        f"{minutes // 60}:{minutes % 60:02}:{seconds:02}",
        *(str(counts[key]) for key in ("done", "skipped", "failed", "left")),
        f"{run['throughput']['megapixels_per_s']:.1f}",
        str(run["exit_code"]),
        run["ended_by"],
    )
