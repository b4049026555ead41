"""Scores of a mask against the truth: counts against brute force, and what pixel values mean."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from masks import write_tiff_mask, write_zarr_mask
from PIL import Image
from typer.testing import CliRunner

import raysegment as rs
from raysegment.cli.app import app
from raysegment.errors import InputError, UsageError
from raysegment.evaluation import counts, evaluate
from raysegment.geometry import Window
from raysegment.raster.walk import windows as walk

THREE = [("land", 10), ("water", 20), ("city", 30)]
LABELS = np.random.default_rng(3).integers(0, 3, (37, 45)).astype(np.uint8)
TRUTH = np.where(np.random.default_rng(4).random(LABELS.shape) < 0.7, LABELS, 2 - LABELS).astype(np.uint8)
SOURCE = np.array([10, 20, 30, *[0] * 252, 254], np.uint8)
"""Class index → source value of THREE."""


def matrix(truth: np.ndarray, prediction: np.ndarray, classes: int = 3) -> list[list[int]]:
    """Brute force."""
    return [[int(np.sum((truth == t) & (prediction == p))) for p in range(classes)] for t in range(classes)]


def tif(path: Path, pixels: np.ndarray, **kwargs: Any) -> Path:
    tifffile.imwrite(path, pixels, metadata=None, **kwargs)
    return path


def rows(result: rs.EvaluateResult) -> list[list[int]]:
    return [list(row) for row in result.confusion]


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    return write_zarr_mask(tmp_path / "mask.zarr", LABELS, THREE)


def test_source_values_of_the_coding(tmp_path: Path, mask: Path) -> None:
    result = evaluate(mask, tif(tmp_path / "t.tif", SOURCE[TRUTH], tile=(16, 16)))
    assert rows(result) == matrix(TRUTH, LABELS)
    assert list(result.classes) == ["land", "water", "city"]
    assert result.classes["water"].support == np.sum(TRUTH == 1)
    assert result.accuracy == pytest.approx(np.mean(TRUTH == LABELS))
    assert result.constant_accuracy == pytest.approx(np.bincount(TRUTH.ravel()).max() / TRUTH.size)
    assert result.ignored_pixels == result.missed_pixels == 0


def test_class_indices_are_used_as_they_are(tmp_path: Path, mask: Path) -> None:
    assert rows(evaluate(mask, tif(tmp_path / "t.tif", TRUTH))) == matrix(TRUTH, LABELS)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.int64, np.float32])
def test_the_truth_may_have_any_dtype(tmp_path: Path, mask: Path, dtype: type) -> None:
    result = evaluate(mask, tif(tmp_path / "t.tif", SOURCE[TRUTH].astype(dtype)))
    assert rows(result) == matrix(TRUTH, LABELS)


def test_truth_by_colours_and_by_palette(tmp_path: Path) -> None:
    palette = np.array([[0, 0, 0], [0, 128, 0], [128, 0, 0]], np.uint8)
    classes = [(n, tuple(map(int, c))) for n, c in zip("abc", palette, strict=True)]
    mask = write_zarr_mask(tmp_path / "m.zarr", LABELS, classes)
    Image.fromarray(palette[TRUTH]).save(tmp_path / "rgb.png")
    order = np.array([2, 0, 1], np.uint8)  # stored index → class
    picture = Image.fromarray(np.argsort(order).astype(np.uint8)[TRUTH], mode=None).convert("L")
    indexed = Image.frombytes("P", picture.size, picture.tobytes())
    indexed.putpalette(palette[order].ravel().tolist())
    indexed.save(tmp_path / "palette.png")
    for name in ("rgb.png", "palette.png"):
        assert rows(evaluate(mask, tmp_path / name)) == matrix(TRUTH, LABELS), name


def test_ignored_truth_is_left_out_and_missing_prediction_is_wrong(tmp_path: Path) -> None:
    labels, truth = LABELS.copy(), SOURCE[TRUTH]
    labels[:5] = 255
    truth[3:9, :20] = 255
    scored = evaluate(write_zarr_mask(tmp_path / "m.zarr", labels, THREE), tif(tmp_path / "t.tif", truth))
    has_truth, answered = truth != 255, labels != 255
    both = has_truth & answered
    assert scored.ignored_pixels == 6 * 20
    assert scored.missed_pixels == np.sum(has_truth & ~answered)
    assert rows(scored) == matrix(TRUTH[both], labels[both])
    assert np.sum(rows(scored)) + scored.ignored_pixels + scored.missed_pixels == truth.size
    for i, score in enumerate(scored.classes.values()):
        hits = np.sum(has_truth & (i == TRUTH) & (labels == i))
        assert score.support == np.sum(has_truth & (i == TRUTH))
        assert score.recall == pytest.approx(hits / score.support)
        assert score.precision == pytest.approx(hits / np.sum(both & (labels == i)))
    assert scored.accuracy == pytest.approx(np.sum(both & (labels == TRUTH)) / has_truth.sum())


def test_nodata_of_the_truth_file_is_left_out(tmp_path: Path, mask: Path) -> None:
    truth = SOURCE[TRUTH]
    truth[:4] = 99
    path = tif(tmp_path / "t.tif", truth, extratags=[(42113, "s", 0, "99", True)])
    result = evaluate(mask, path)
    assert result.ignored_pixels == 4 * truth.shape[1]
    assert rows(result) == matrix(TRUTH[4:], LABELS[4:])


def test_a_nodata_value_that_names_a_class_is_that_class(tmp_path: Path) -> None:
    classes = [("land", 0), ("water", 1), ("city", 2)]
    truth = tif(tmp_path / "t.tif", TRUTH, extratags=[(42113, "s", 0, "0", True)])
    result = evaluate(write_zarr_mask(tmp_path / "m.zarr", LABELS, classes), truth)
    assert rows(result) == matrix(TRUTH, LABELS)
    assert result.ignored_pixels == 0


def test_negative_truth_means_no_class(tmp_path: Path, mask: Path) -> None:
    truth = TRUTH.astype(np.int16)
    truth[0] = -1
    assert evaluate(mask, tif(tmp_path / "t.tif", truth)).ignored_pixels == truth.shape[1]


def test_an_unknown_value_is_named(tmp_path: Path, mask: Path) -> None:
    truth = SOURCE[TRUTH]
    truth[0, 0] = 77
    with pytest.raises(InputError, match=r"the truth .*t\.tif holds value.* 77.*land, water.*--classes"):
        evaluate(mask, tif(tmp_path / "t.tif", truth))


def test_0_and_255_are_not_guessed_to_be_a_class_and_ignore(tmp_path: Path) -> None:
    labels = LABELS % 2
    mask = write_zarr_mask(tmp_path / "m.zarr", labels, [("land", 0), ("water", 1)])
    truth = tif(tmp_path / "t.tif", ((TRUTH % 2) * 255).astype(np.uint8))
    with pytest.raises(InputError, match="0 and 255"):
        evaluate(mask, truth)


def classes_file(tmp_path: Path, order: list[int] = [1, 2, 0]) -> Path:  # noqa: B006
    text = "ignore = [99]\n"
    for i in order:
        text += f'[[class]]\nname = "{THREE[i][0]}"\nvalues = [{THREE[i][1]}, {THREE[i][1] + 1}]\n'
    path = tmp_path / "classes.toml"
    path.write_text(text)
    return path


def test_a_classes_file_maps_the_truth_by_name_in_any_order(tmp_path: Path, mask: Path) -> None:
    truth = SOURCE[TRUTH]
    truth[::2] += 1
    truth[0] = 99
    result = evaluate(mask, tif(tmp_path / "t.tif", truth), classes=classes_file(tmp_path))
    assert list(result.classes) == ["land", "water", "city"]
    assert rows(result) == matrix(TRUTH[1:], LABELS[1:])
    assert result.ignored_pixels == truth.shape[1]


def test_a_classes_file_maps_a_plain_prediction_too(tmp_path: Path) -> None:
    t, names = tif(tmp_path / "t.tif", SOURCE[TRUTH]), classes_file(tmp_path, [0, 1, 2])
    by_value = evaluate(tif(tmp_path / "a.tif", SOURCE[LABELS]), t, classes=names)
    by_index = evaluate(tif(tmp_path / "b.tif", LABELS), t, classes=names)
    assert rows(by_value) == rows(by_index) == matrix(TRUTH, LABELS)


def test_other_classes_than_the_prediction_s_are_refused(tmp_path: Path, mask: Path) -> None:
    (tmp_path / "c.toml").write_text('[[class]]\nname="a"\nvalue=0\n[[class]]\nname="b"\nvalue=1\n')
    with pytest.raises(InputError, match=r"c\.toml has the classes a, b, the prediction land, water, city"):
        evaluate(mask, tif(tmp_path / "t.tif", TRUTH), classes=tmp_path / "c.toml")


def test_a_truth_that_is_a_mask_of_ours_is_matched_by_name(tmp_path: Path, mask: Path) -> None:
    turned = [THREE[2], THREE[0], THREE[1]]
    truth = write_tiff_mask(tmp_path / "t.tif", ((TRUTH + 1) % 3).astype(np.uint8), turned)
    assert rows(evaluate(mask, truth)) == matrix(TRUTH, LABELS)


def test_two_plain_masks(tmp_path: Path) -> None:
    one, two = tif(tmp_path / "a.tif", LABELS), tif(tmp_path / "b.tif", TRUTH)
    result = evaluate(one, two)
    assert list(result.classes) == ["class 0", "class 1", "class 2"]
    assert rows(result) == matrix(TRUTH, LABELS)


@pytest.mark.parametrize("bright", [(True, True), (True, False), (False, True)])
def test_two_plain_binary_masks_of_either_coding(tmp_path: Path, bright: tuple[bool, bool]) -> None:
    pair = [np.minimum(a, 1) * (255 if b else 1) for a, b in zip((LABELS, TRUTH), bright, strict=True)]
    result = evaluate(tif(tmp_path / "a.tif", pair[0]), tif(tmp_path / "b.tif", pair[1]))
    assert rows(result) == matrix(TRUTH > 0, LABELS > 0, 2)
    assert result.missed_pixels == 0


_WIDE = [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32]


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.int32])
def test_two_plain_masks_of_0_and_the_greatest_number_are_binary(tmp_path: Path, dtype: type) -> None:
    high = np.iinfo(dtype).max
    bright = [np.minimum(a, 1).astype(dtype) * dtype(high) for a in (LABELS, TRUTH)]
    p = tif(tmp_path / "a.tif", bright[0])
    for truth in (bright[1], np.minimum(TRUTH, 1)):
        result = evaluate(p, tif(tmp_path / "b.tif", truth))
        assert rows(result) == matrix(TRUTH > 0, LABELS > 0, 2)
        assert result.missed_pixels == result.ignored_pixels == 0


def test_the_greatest_number_is_nodata_where_the_file_says_so(tmp_path: Path) -> None:
    truth = np.minimum(TRUTH, 1).astype(np.uint16)
    truth[:4] = 65535
    path = tif(tmp_path / "t.tif", truth, extratags=[(42113, "s", 0, "65535", True)])
    result = evaluate(tif(tmp_path / "a.tif", np.minimum(LABELS, 1)), path)
    assert result.ignored_pixels == 4 * truth.shape[1]
    assert rows(result) == matrix(TRUTH[4:] > 0, LABELS[4:] > 0, 2)


@pytest.mark.parametrize("dtype", _WIDE)
@pytest.mark.parametrize("coded", [False, True])
def test_255_beside_class_indices_is_ignored_in_every_dtype(tmp_path: Path, dtype: type, coded: bool) -> None:
    truth = TRUTH.copy()
    truth[:4] = 255
    mask = write_zarr_mask(tmp_path / "m.zarr", LABELS, THREE) if coded else tif(tmp_path / "a.tif", LABELS)
    result = evaluate(mask, tif(tmp_path / "t.tif", truth.astype(dtype)))
    assert len(result.classes) == 3
    assert result.ignored_pixels == 4 * truth.shape[1]
    assert rows(result) == matrix(TRUTH[4:], LABELS[4:])


def test_255_is_a_class_among_300(tmp_path: Path) -> None:
    many = np.arange(LABELS.size, dtype=np.uint16).reshape(LABELS.shape) % 300
    for classes in (300, 256):
        result = evaluate(tif(tmp_path / "a.tif", many % classes), tif(tmp_path / "b.tif", many % classes))
        assert (len(result.classes), result.accuracy, result.ignored_pixels) == (classes, 1.0, 0)


def test_numbers_without_a_meaning_are_refused(tmp_path: Path) -> None:
    big = LABELS.astype(np.uint16) * 9000
    with pytest.raises(InputError, match="values up to 18000"):
        evaluate(tif(tmp_path / "a.tif", big), tif(tmp_path / "b.tif", big))
    noise = np.random.default_rng(0).integers(0, 60000, (128, 128)).astype(np.uint16)
    with pytest.raises(InputError, match="not a mask"):
        evaluate(tif(tmp_path / "c.tif", noise), tif(tmp_path / "d.tif", noise))


def test_a_mask_of_a_region_is_compared_with_that_region(tmp_path: Path) -> None:
    part = (slice(9, 30), slice(11, 31))
    mask = write_zarr_mask(tmp_path / "m.zarr", LABELS[part], THREE, origin=(9, 11))
    result = evaluate(mask, tif(tmp_path / "t.tif", SOURCE[TRUTH], tile=(16, 16)))
    assert rows(result) == matrix(TRUTH[part], LABELS[part])


@pytest.mark.parametrize(
    ("shape", "origin"), [((40, 45), None), ((36, 45), None), ((37, 45), (1, 0)), ((30, 30), (10, 0))]
)
def test_sizes_that_do_not_fit_are_named(
    tmp_path: Path, shape: tuple[int, int], origin: tuple[int, int] | None
) -> None:
    labels = np.zeros(shape, np.uint8)
    if origin is None:
        mask = tif(tmp_path / "m.tif", labels)
    else:
        mask = write_zarr_mask(tmp_path / "m.zarr", labels, THREE, origin=origin)
    with pytest.raises(InputError, match=f"{shape[0]} × {shape[1]} px, the truth .*t.tif 37 × 45 px"):
        evaluate(mask, tif(tmp_path / "t.tif", TRUTH))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), pixels=st.integers(16, 400))
def test_counts_do_not_depend_on_how_the_image_is_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject, pixels: int
) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=50))
    codes = st.sampled_from([0, 1, 2, 255])
    p, t = (data.draw(hnp.arrays(np.uint8, shape, elements=codes)) for _ in range(2))
    monkeypatch.setattr(counts, "windows", lambda area, chunk, _: walk(area, chunk, pixels))
    classes = [("a", 0), ("b", 1), ("c", 2)]
    for path in tmp_path.glob("m.zarr/**/*"):
        if path.is_file():
            path.unlink()
    result = evaluate(
        write_zarr_mask(tmp_path / "m.zarr", p, classes, chunk=7), tif(tmp_path / "t.tif", t, rowsperstrip=3)
    )
    both = (t != 255) & (p != 255)
    assert rows(result) == matrix(t[both], p[both])
    assert result.missed_pixels == np.sum((t != 255) & (p == 255))
    assert result.ignored_pixels == np.sum(t == 255)


ABC = [("a", 0), ("b", 1), ("c", 2)]


def under(length: int, scale: Fraction, own: Fraction = Fraction(1)) -> np.ndarray:
    """The pixel, of `scale` source pixels, under the centre of each of `length` pixels of `own` source pixels."""
    return np.array([floor((j + Fraction(1, 2)) * own / scale) for j in range(length)])


def answers(labels: np.ndarray, at: tuple[int, int], rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """What `labels`, whose corner is the pixel `at` of its grid, says under a truth; -1 beside it."""
    out = np.full((len(rows), len(cols)), -1)
    for i, row in enumerate(rows - at[0]):
        for j, col in enumerate(cols - at[1]):
            if 0 <= row < labels.shape[0] and 0 <= col < labels.shape[1]:
                out[i, j] = labels[row, col]
    return out


@st.composite
def masks_of_regions(
    draw: st.DrawFn, full: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int], list[Fraction]]:
    """Labels on a grid of any size over a source of `full` pixels, the grid's pixel they begin at, its scale."""
    grid = [draw(st.integers(1, 2 * length)) for length in full]
    at = [draw(st.integers(0, length - 1)) for length in grid]
    shape = [draw(st.integers(1, length - start)) for length, start in zip(grid, at, strict=True)]
    labels = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255])))
    return labels, (at[0], at[1]), [Fraction(f, g) for f, g in zip(full, grid, strict=True)]


def scaled_mask(path: Path, made: tuple[np.ndarray, tuple[int, int], list[Fraction]]) -> Path:
    labels, at, scale = made
    shutil.rmtree(path, ignore_errors=True)
    # whole source pixels, as far as they tell the place
    origin = [round(a * s) if s >= 1 else float(a * s) for a, s in zip(at, scale, strict=True)]
    return write_zarr_mask(path, labels, ABC, origin=origin, scale=[float(s) for s in scale], chunk=7)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), full=st.tuples(st.integers(1, 30), st.integers(1, 30)), pixels=st.integers(16, 400))
def test_of_another_scale_the_truth_takes_the_class_under_its_pixels_centres(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject, full: tuple[int, int], pixels: int
) -> None:
    made = data.draw(masks_of_regions(full))
    t = data.draw(hnp.arrays(np.uint8, full, elements=st.sampled_from([0, 1, 2, 255])))
    p = answers(*made[:2], *(under(n, s) for n, s in zip(full, made[2], strict=True)))
    monkeypatch.setattr(counts, "windows", lambda area, chunk, _: walk(area, chunk, pixels))
    mask, truth = scaled_mask(tmp_path / "m.zarr", made), tif(tmp_path / "t.tif", t, rowsperstrip=3)
    if made[0].shape == full and made[1] == (0, 0):
        p = made[0]  # the size of the truth: pixel on pixel
    elif (p == -1).all():  # finer than the truth, and between its centres
        with pytest.raises(InputError, match="no part of it"):
            evaluate(mask, truth)
        return
    result = evaluate(mask, truth)
    both = (t != 255) & (p != 255) & (p != -1)
    assert rows(result) == matrix(t[both], p[both])
    assert result.missed_pixels == np.sum((t != 255) & (p == 255))
    assert result.ignored_pixels == np.sum((t == 255) & (p != -1))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), full=st.tuples(st.integers(1, 24), st.integers(1, 24)))
def test_a_truth_that_is_a_mask_of_ours_may_have_its_own_scale(
    tmp_path: Path, data: st.DataObject, full: tuple[int, int]
) -> None:
    p = data.draw(masks_of_regions(full))
    whole = [data.draw(st.integers(1, 2 * length)) for length in full]
    labels = data.draw(hnp.arrays(np.uint8, whole, elements=st.sampled_from([0, 1, 2])))
    t = labels, (0, 0), [Fraction(f, g) for f, g in zip(full, whole, strict=True)]
    said = answers(*p[:2], *(under(n, *s) for n, *s in zip(whole, p[2], t[2], strict=True)))
    if (said == -1).all() or (p[1] == (0, 0) and p[0].shape == labels.shape):
        return  # both are told above
    result = evaluate(scaled_mask(tmp_path / "p.zarr", p), scaled_mask(tmp_path / "t.zarr", t))
    both = (said != 255) & (said != -1)
    assert rows(result) == matrix(labels[both], said[both])
    assert result.missed_pixels == np.sum(said == 255)


@pytest.mark.parametrize("scale", [2.0, 0.5, 1000 / 667])
def test_a_truth_of_the_masks_own_size_is_compared_pixel_on_pixel(tmp_path: Path, scale: float) -> None:
    mask = write_zarr_mask(tmp_path / "m.zarr", LABELS, THREE, scale=(scale, scale))
    assert rows(evaluate(mask, tif(tmp_path / "t.tif", SOURCE[TRUTH]))) == matrix(TRUTH, LABELS)


def test_pixel_sizes_tell_a_truth_on_the_masks_grid_from_one_on_the_source_s(tmp_path: Path) -> None:
    part = (slice(9, 15), slice(11, 20))
    mask = write_zarr_mask(
        tmp_path / "m.zarr", LABELS[part], THREE, origin=(18, 22), scale=(2, 2), pixel_size=4.0
    )
    own = write_zarr_mask(tmp_path / "own.zarr", TRUTH, THREE, pixel_size=4.0)
    fine = write_zarr_mask(tmp_path / "fine.zarr", TRUTH.repeat(2, 0).repeat(2, 1), THREE, pixel_size=2.0)
    assert rows(evaluate(mask, own)) == matrix(TRUTH[part], LABELS[part])
    assert rows(evaluate(mask, fine)) == (4 * np.array(matrix(TRUTH[part], LABELS[part]))).tolist()
    other = write_zarr_mask(tmp_path / "other.zarr", TRUTH, THREE, pixel_size=3.0)
    with pytest.raises(
        InputError, match=r"6 × 9 px, the truth .* 37 × 45 px.*2 × 2 of the source's.*give the truth"
    ):
        evaluate(mask, other)


@pytest.mark.parametrize("off", [(0, 0), (0.5, -0.5), (0, 3), (-2, 0)])
@pytest.mark.parametrize("is_region", [False, True])
def test_a_truth_of_other_ground_is_refused(
    tmp_path: Path, off: tuple[float, float], is_region: bool
) -> None:
    """Of the mask's own size, or of the source's, with its corner `off` pixels from the source's."""
    y, x = (9, 11) if is_region else (0, 0)
    part = (slice(y, 30 if is_region else None), slice(x, 31 if is_region else None))
    place = {"proj:code": "EPSG:32616", "spatial:transform": [10, 0, 500 + 10 * x, 0, -10, 900 - 10 * y]}
    mask = write_zarr_mask(tmp_path / "m.zarr", LABELS[part], THREE, origin=(y, x), **place)
    with rasterio.open(
        tmp_path / "t.tif", "w", driver="GTiff", height=37, width=45, count=1, dtype="uint8", crs="EPSG:32616",
        transform=rasterio.Affine(10, 0, 500 + 10 * off[1], 0, -10, 900 - 10 * off[0]),
    ) as dataset:  # fmt: skip
        dataset.write(SOURCE[TRUTH][None])
    if max(map(abs, off)) < 1:
        assert rows(evaluate(mask, tmp_path / "t.tif")) == matrix(TRUTH[part], LABELS[part])
    else:
        with pytest.raises(
            InputError, match=rf"t.tif lies elsewhere than .*m.zarr, by {10 * abs(sum(off)):g} "
        ):
            evaluate(mask, tmp_path / "t.tif")


@pytest.mark.parametrize("shape", [(36, 45), (73, 90), (74, 89), (30, 30)])
def test_a_truth_of_neither_resolution_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    mask = write_zarr_mask(tmp_path / "m.zarr", LABELS, THREE, scale=(2, 2))
    with pytest.raises(
        InputError, match=f"37 × 45 px, the truth .*t.tif {shape[0]} × {shape[1]} px"
    ) as raised:
        evaluate(mask, tif(tmp_path / "t.tif", np.zeros(shape, np.uint8)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("scale", [64.0, 1 / 64])
def test_what_is_read_at_once_does_not_grow_with_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    big, small = np.zeros((1024, 1024), np.uint8), np.ones((16, 16), np.uint8)
    p, t = (small, big) if scale > 1 else (big, small)
    mask = write_zarr_mask(tmp_path / "m.zarr", p, ABC, scale=(scale, scale), chunk=64)
    monkeypatch.setattr(counts, "WINDOW_PIXELS", 1 << 14)
    most = 0
    from raysegment.raster.tiff import TiffRaster
    from raysegment.raster.zarr import ZarrRaster

    for kind in (TiffRaster, ZarrRaster):
        read = kind.read

        def spy(self: Any, window: Window, level: int = 0, read: Any = read) -> np.ndarray:
            nonlocal most
            most = max(most, window.area)
            return read(self, window, level)

        monkeypatch.setattr(kind, "read", spy)
    result = evaluate(mask, tif(tmp_path / "t.tif", t, tile=(64, 64)))
    assert result.confusion[int(t[0, 0])][int(p[0, 0])] == t.size
    assert most <= 4 * counts.WINDOW_PIXELS


def test_the_command(tmp_path: Path, mask: Path) -> None:
    truth = tif(tmp_path / "t.tif", SOURCE[TRUTH])
    answer = CliRunner().invoke(app, ["evaluate", str(mask), str(truth), "--json"])
    assert answer.exit_code == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert list(found) == [
        *("classes", "mean_iou", "mean_dice", "accuracy", "constant_accuracy", "confusion"),
        *("ignored_pixels", "missed_pixels"),
    ]
    assert list(found["classes"]["land"]) == ["iou", "dice", "precision", "recall", "support"]
    assert found["confusion"] == matrix(TRUTH, LABELS)
    text = CliRunner().invoke(app, ["evaluate", str(mask), str(truth)]).stdout
    assert f"{found['mean_iou']:.4f}" in text
    assert "water" in text
    assert "best constant answer" in text


def test_the_table_has_a_line_for_every_class_of_the_mean(tmp_path: Path, mask: Path) -> None:
    truth = tif(tmp_path / "t.tif", np.full_like(SOURCE[TRUTH], SOURCE[0]))
    result = evaluate(mask, truth)
    shown = {line.split()[0]: line.split()[1:] for line in result.summary().splitlines()}
    assert shown["water"] == ["0.0000"] * 4 + ["0"]
    ious = [float(shown[name][0]) for name in ("land", "water", "city")]
    assert np.mean(ious) == pytest.approx(result.mean_iou, abs=1e-4)


def test_the_command_fails_in_one_line(tmp_path: Path, mask: Path) -> None:
    answer = CliRunner().invoke(app, ["evaluate", str(mask), str(tmp_path / "none.tif")])
    assert answer.exit_code == 2
    assert "none.tif" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_one_plane_of_a_stack_is_the_truth(tmp_path: Path, mask: Path) -> None:
    stack = zarr.create_array(
        tmp_path / "t.zarr", shape=(2, *TRUTH.shape), dtype="u1", dimension_names=("z", "y", "x")
    )
    stack[1] = TRUTH
    with pytest.raises(UsageError, match="--select z=0"):
        evaluate(mask, tmp_path / "t.zarr")
    assert rows(evaluate(mask, tmp_path / "t.zarr", select={"z": 1})) == matrix(TRUTH, LABELS)
    with pytest.raises(UsageError, match="fits neither"):
        evaluate(mask, tif(tmp_path / "t.tif", TRUTH), select={"z": 1})
