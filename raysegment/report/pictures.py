"""Pictures inside a page: a window of an image beside its truth, the prediction, and where they differ."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

from raysegment.model.spec import Class

#: Edge of the largest picture in a page; larger windows are shown reduced.
_MOST_PX = 320
#: How wrong pixels are marked over the grey image.
WRONG = (224, 32, 48)
_NOTHING, _STRIPE, _STRIPE_PX = (236, 236, 236), (196, 196, 196), 8


def data_uri(pixels: np.ndarray) -> str:
    """uint8 (h, w, 3) as a PNG that an <img> takes without a file."""
    from PIL import Image

    with io.BytesIO() as png:
        Image.fromarray(pixels).save(png, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def panels(
    pixels: np.ndarray, valid: np.ndarray, truth: np.ndarray, labels: np.ndarray, classes: Sequence[Class]
) -> dict[str, np.ndarray]:
    """Pictures uint8 (h, w, 3) of one window: image, truth, prediction, errors.

    `pixels` (h, w, channels) as stored, `valid` (h, w) bool, `truth` and `labels` (h, w) class indices below 256; in
    `truth` any other number is ignored and hatched. The errors are wrong pixels over the grey image.
    """
    from raysegment.mask.drawing import stretched

    channels = 3 if pixels.shape[2] >= 3 else 1
    image = stretched(
        np.nan_to_num(pixels[:, :, :channels].astype(np.float64)), valid.astype(np.float32), pixels.dtype
    )
    image, truth, labels = (_reduced(a) for a in (image, truth.astype(np.uint8), labels.astype(np.uint8)))
    known = truth < len(classes)
    grey = image.mean(axis=2, keepdims=True)
    errors = np.repeat(96 + 0.62 * grey, 3, axis=2).astype(np.uint8)
    errors[known & (truth != labels)] = WRONG
    return {
        "image": image,
        "truth": _flat(truth, known, classes),
        "prediction": _flat(labels, np.ones_like(known), classes),
        "errors": np.where(known[:, :, None], errors, _hatched(truth.shape)),
    }


def side_by_side(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """One picture of rows of pictures uint8 (h, w, 3), whatever their sizes, with a white gap between them."""
    gap = 4
    height = max(p.shape[0] for row in rows for p in row)
    width = max(p.shape[1] for row in rows for p in row)
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = i * (height + gap), j * (width + gap)
            sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return sheet


def _reduced(pixels: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) by the mean, class indices (h, w) by the nearest, to _MOST_PX at most."""
    from PIL import Image

    by = max(1.0, max(pixels.shape[:2]) / _MOST_PX)
    height, width = (max(1, round(n / by)) for n in pixels.shape[:2])
    how = Image.Resampling.BOX if pixels.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def _flat(codes: np.ndarray, known: np.ndarray, classes: Sequence[Class]) -> np.ndarray:
    table = np.array([c.colour for c in classes], np.uint8)
    flat = table[np.where(known, codes, 0)]
    return np.where(known[:, :, None], flat, _hatched(codes.shape))


def _hatched(shape: tuple[int, ...]) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.where(((y + x) % _STRIPE_PX == 0)[:, :, None], _STRIPE, _NOTHING).astype(np.uint8)
