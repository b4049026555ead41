"""What is worth knowing of a model: its spec, and the size of its weights, without loading either torch or them."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from raysegment.model.file import file_identity, load_spec


def model_facts(path: Path) -> dict[str, Any]:
    """From the header of the file alone, but for the digest. Raises InputError."""
    from safetensors import safe_open

    spec = load_spec(path)
    with safe_open(path, framework="np") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    thresholds = spec.thresholds or (None,) * len(spec.classes)
    return {
        "architecture": spec.architecture,
        "parameters": sum(prod(shape) for name, shape in shapes.items() if not _is_statistic(name)),
        "tensors": len(shapes),
        "bytes": path.stat().st_size,
        "sha256": file_identity(path),
        "channels": spec.channels,
        "tile": spec.tile,
        "multiple": spec.multiple,
        "margin": spec.margin,
        "scale": spec.scale,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "activation": spec.activation,
        "pixel_size": list(spec.pixel_size) if spec.pixel_size is not None else None,
        "nodata": spec.nodata,
        "classes": [
            {
                "index": i,
                "name": c.name,
                "colour": "#{:02x}{:02x}{:02x}".format(*c.colour),
                "value": c.value,
                "threshold": threshold,
            }
            for i, (c, threshold) in enumerate(zip(spec.classes, thresholds, strict=True))
        ],
        "licence": spec.licence,
        "provenance": spec.provenance,
    }


def _is_statistic(name: str) -> bool:
    """BatchNorm's running values are stored with the weights and are no parameters."""
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))
