"""report.json for programs, and report.html for people: counts, speed, what failed and why, and pictures."""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

from raysegment import console
from raysegment.errors import RaysegmentError
from raysegment.mask.preview import pixels_read, preview
from raysegment.report.page import render
from raysegment.storage import Location
from raysegment.storage.objects import put

#: Pictures on a page, spread over the night's images, and their longer edge in pixels.
MOST_PICTURES = 24
_EDGE_PX = 360
#: Pixels that are read for one picture: of a large image without overviews it would be all of them.
MOST_READ_PX = 100_000_000
#: Rows of a table; report.json has them all.
MOST_ROWS = 500


def write_report(folder: Location, record: dict[str, Any]) -> str:
    """Write report.json; its path. Raises OSError, StorageError."""
    return _put(folder / "report.json", json.dumps(record, ensure_ascii=False, indent=1))


def write_page(folder: Location, record: dict[str, Any], *, has_time: bool) -> str:
    """Write report.html, with pictures where there is time to draw them; its path. Raises OSError, StorageError."""
    return _put(folder / "report.html", page(record, has_time=has_time))


def _put(file: Location, text: str) -> str:
    # a file name need not be valid Unicode
    put(file, text.encode("utf-8", "backslashreplace"))
    return str(file)


def page(record: dict[str, Any], *, has_time: bool) -> str:
    """The page of a run; `record` as in record.py."""
    done = [image for image in record["images"] if image["state"] == "done"]
    step = max(1, -(-len(done) // MOST_PICTURES))
    return render(
        "batch.html",
        {
            **record,
            "done": done,
            "failures": [image for image in record["images"] if image["state"] == "failed"],
            "regions": [
                {**region, "source": image["source"]} for image in done for region in image["failed_regions"]
            ],
            "pictures": _pictures(done[::step]) if has_time else [],
            "most_rows": MOST_ROWS,
        },
    )


def _pictures(images: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Images whose pictures could be drawn, each with image and mask beside each other as a data: URI."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(images):
            out = Path(folder) / f"{number}.png"
            try:
                if (pixels := pixels_read(image["source"], image["output"], _EDGE_PX)) > MOST_READ_PX:
                    megapixels = round(pixels / 1e6)
                    console.detail(
                        f"no picture of {image['source']}: it takes {megapixels} MP without overviews"
                    )
                    continue
                preview(image["source"], image["output"], out=out, max_size=_EDGE_PX, layout="side")
            except RaysegmentError as e:  # the masks are there all the same
                console.warn(f"no picture of {image['source']}: {e}")
                continue
            found.append((image, "data:image/png;base64," + base64.b64encode(out.read_bytes()).decode()))
    return found
