"""What is worth knowing of a model: its spec, and the size of its weights, without loading torch."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from raysegment.model.file import file_identity, file_sha256, load_spec


def model_facts(path: Path) -> dict[str, Any]:
    """From the header of the file alone, but for the digests. Raises InputError, and UsageError without onnx."""
    spec = load_spec(path)
    tensors, parameters = _weights(path)
    thresholds = spec.thresholds or (None,) * len(spec.classes)
    return {
        "architecture": spec.architecture,
        "format": path.suffix[1:],
        "parameters": parameters,
        "tensors": tensors,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "identity": file_identity(path),
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


def _weights(path: Path) -> tuple[int, int]:
    """How many tensors a model stores, and how many of their numbers are parameters."""
    if path.suffix == ".pt2":
        from raysegment.model import pt2_archive

        return pt2_archive.parameters(path.read_bytes(), str(path))
    if path.suffix == ".onnx":
        from raysegment.model import onnx

        return onnx.parameters(path)
    from safetensors import safe_open

    with safe_open(path, framework="np") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return len(shapes), sum(prod(shape) for name, shape in shapes.items() if not _is_statistic(name))


def _is_statistic(name: str) -> bool:
    """BatchNorm's running values are stored with the weights and are no parameters."""
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))
