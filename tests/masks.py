"""Small masks for tests, written by other means than the code under test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr


def coding(
    classes: Sequence[tuple[str, Any]],
    origin: Sequence[float] = (0, 0),
    nodata: int = 255,
    scale: Sequence[float] | None = None,
) -> dict[str, Any]:
    """What a mask says of its classes: (name, source value) each; without `scale` as older masks do."""
    listed = [{"name": n, "colour": [40 * i, 10, 200], "value": v} for i, (n, v) in enumerate(classes)]
    said = {"classes": listed, "nodata": nodata, "origin": list(origin)}
    return said if scale is None else {**said, "scale": list(scale)}


def write_zarr_mask(
    path: Path,
    labels: np.ndarray,
    classes: Sequence[tuple[str, Any]] = (("land", 0), ("water", 255)),
    *,
    origin: Sequence[float] = (0, 0),
    scale: Sequence[float] | None = None,
    pixel_size: float = 1.0,
    chunk: int = 16,
    levels: int = 1,
    **attributes: Any,
) -> Path:
    """An OME-Zarr 0.5 label image with a class coding; further levels are every second pixel."""
    nodata = int(np.iinfo(labels.dtype).max)
    scales = [
        {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": 2 * [pixel_size * 2**i]}]}
        for i in range(levels)
    ]
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    ome = {
        "version": "0.5",
        "multiscales": [{"name": "mask", "axes": axes, "datasets": scales}],
        "image-label": {"properties": [{"label-value": i, "class": n} for i, (n, _) in enumerate(classes)]},
    }
    zarr.create_group(
        path, attributes={"ome": ome, "raysegment": coding(classes, origin, nodata, scale), **attributes}
    )
    for i in range(levels):
        level = labels[:: 2**i, :: 2**i]
        array = zarr.create_array(
            path,
            name=str(i),
            shape=level.shape,
            chunks=(min(chunk, level.shape[0]), min(chunk, level.shape[1])),
            dtype=labels.dtype,
            fill_value=nodata,
            dimension_names=("y", "x"),
        )
        array[:] = level
    return path


def write_tiff_mask(path: Path, labels: np.ndarray, classes: Sequence[tuple[str, Any]] | None = None) -> Path:
    """A TIFF of class indices; with `classes`, their coding as GDAL metadata."""
    tags = []
    if classes is not None:
        text = json.dumps(coding(classes)).replace("<", "&lt;")
        xml = f'<GDALMetadata><Item name="raysegment">{text}</Item></GDALMetadata>'
        tags = [(42112, "s", 0, xml, True)]
    tifffile.imwrite(path, labels, extratags=tags, metadata=None)
    return path
