"""The plain way, which the product must equal: every tile by itself, blended in float64 over the whole image."""

from __future__ import annotations

import numpy as np

from raysegment.inference.blend import Blend, window
from raysegment.model.model import Model


def whole_image(model: Model, image: np.ndarray, tile: int, overlap: int, blend: Blend) -> np.ndarray:
    """Class probabilities (classes, h, w) float64 of an image (h, w, channels).

    The image is mirrored far enough by numpy.pad, tiles are laid from −overlap/2 in steps of tile − overlap, and
    what they answer is summed with its weights and divided by the sum of the weights.
    """
    height, width, _ = image.shape
    stride, half, margin = tile - overlap, overlap // 2, model.spec.margin
    rows, cols = -(-height // stride), -(-width // stride)
    reach = half + margin
    pads = ((reach, rows * stride + reach - height), (reach, cols * stride + reach - width), (0, 0))
    padded = np.pad(image, pads, mode="reflect")
    w = window(blend, tile, overlap)
    weight = np.outer(w, w)
    sums = np.zeros((len(model.spec.classes), rows * stride + overlap, cols * stride + overlap))
    total = np.zeros(sums.shape[1:])
    edge = tile + 2 * margin
    for y in range(0, rows * stride, stride):
        for x in range(0, cols * stride, stride):
            answer = model.predict(np.ascontiguousarray(padded[None, y : y + edge, x : x + edge]))[0]
            sums[:, y : y + tile, x : x + tile] += answer.astype(np.float64) * weight
            total[y : y + tile, x : x + tile] += weight
    inside = (slice(half, half + height), slice(half, half + width))
    return sums[(slice(None), *inside)] / total[inside]
