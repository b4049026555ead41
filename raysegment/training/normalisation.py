"""What pixels are before the network sees them: x' = (x · scale − mean) / std, decided once per model."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from raysegment.errors import UsageError
from raysegment.training.dataset import Format
from raysegment.training.survey import Survey

#: Of ImageNet's pixels in [0, 1]: what nearly all pretrained encoders were trained on.
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def normalisation(kind: Literal["zscore", "unit", "imagenet"], seen: Survey, fmt: Format) -> dict[str, Any]:
    """`scale`, `mean` and `std` of a :class:`raysegment.model.ModelSpec`.

    zscore: mean 0 and deviation 1 per channel over the training pixels. unit: an integer's whole range to [0, 1].
    imagenet: the same, then ImageNet's mean and deviation. Raises UsageError where the pixels are not of that kind.
    """
    if kind == "zscore":
        return {"mean": seen.mean, "std": seen.std}
    dtype = np.dtype(fmt.dtype)
    if dtype.kind != "u":
        raise UsageError(
            f"--normalisation {kind} needs unsigned integers, the images hold {fmt.dtype}: give zscore"
        )
    scale = 1 / float(np.iinfo(dtype).max)
    if kind == "unit":
        return {"scale": scale}
    if len(fmt.channels) != 3:
        raise UsageError(
            f"--normalisation imagenet needs 3 channels, the images have {len(fmt.channels)}: give zscore"
        )
    return {"scale": scale, **_IMAGENET}
