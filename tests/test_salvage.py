"""Damaged images: what is lost depends on the chunk alone, whatever window asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from raysegment.errors import ReadError
from raysegment.geometry import Size, Window
from raysegment.raster import Raster, open_raster
from raysegment.raster.salvage import Failure, merged, read_what_can_be

HEIGHT, WIDTH = 150, 131


def noise(channels: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (HEIGHT, WIDTH, channels), dtype=np.uint8)


def whole(raster: Raster, level: int = 0) -> Window:
    return Window(y=0, x=0, height=raster.levels[level].height, width=raster.levels[level].width)


@st.composite
def windows(draw: st.DrawFn, height: int = HEIGHT, width: int = WIDTH) -> Window:
    y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Window(y=y, x=x, height=draw(st.integers(1, height - y)), width=draw(st.integers(1, width - x)))


def check(raster: Raster, lost: np.ndarray, pixels: np.ndarray, level: int = 0) -> list[Failure]:
    """Any window equals the crop of the whole, what is lost is what is known to be broken, the rest is exact."""
    fill = raster.nodata or 0
    everything, valid, failures = read_what_can_be(raster, whole(raster, level), level)
    assert valid is not None
    np.testing.assert_array_equal(valid, ~lost)
    np.testing.assert_array_equal(everything, np.where(lost[:, :, None], fill, pixels))
    painted = np.zeros_like(lost, int)
    for failure in failures:
        painted[failure.window.slices()] += 1
    np.testing.assert_array_equal(painted, lost)  # each once, none beyond the image

    @given(windows(*raster.levels[level]))
    def agrees(window: Window) -> None:
        crop, crop_valid, crop_failures = read_what_can_be(raster, window, level)
        np.testing.assert_array_equal(crop, everything[window.slices()])
        seen = np.ones(window.size, bool) if crop_valid is None else crop_valid
        np.testing.assert_array_equal(seen, valid[window.slices()])
        found = np.zeros_like(lost)
        for failure in crop_failures:
            found[failure.window.slices()] = True
        np.testing.assert_array_equal(found[window.slices()], lost[window.slices()])
        assert not (found & ~lost).any()

    agrees()
    raster.close()
    return failures


def spoil(path: Path, segments: list[int], page: int = 0) -> None:
    with tifffile.TiffFile(path) as tif:
        found = tif.pages[page]
        places = [(found.dataoffsets[i], found.databytecounts[i]) for i in segments]
    with path.open("r+b") as f:
        for offset, count in places:
            f.seek(offset)
            f.write(b"\xff" * count)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_broken_tiles_of_a_tiff(tmp_path: Path, planar: str) -> None:
    pixels, path = noise(), tmp_path / "a.tif"
    stored = pixels if planar == "contig" else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    tifffile.imwrite(
        path, stored, tile=(32, 48), compression="deflate", photometric="minisblack", planarconfig=planar,
        metadata=None, extratags=[(42113, "s", 0, "9", True)],
    )  # fmt: skip
    spoil(path, [4, 7, 14])  # row 1, columns 1; row 2, column 1; the corner
    lost = np.zeros((HEIGHT, WIDTH), bool)
    lost[32:96, 48:96] = lost[128:, 96:] = True
    failures = check(open_raster(path), lost, pixels)
    assert [f.window for f in failures] == [
        Window.between(32, 48, 96, 96), Window.between(128, 96, HEIGHT, WIDTH),
    ]  # fmt: skip
    assert all(f.reason and str(path) not in f.reason for f in failures)


def test_broken_strips_of_a_tiff(tmp_path: Path) -> None:
    pixels, path = noise(1), tmp_path / "a.tif"
    tifffile.imwrite(path, pixels[:, :, 0], rowsperstrip=17, compression="deflate", metadata=None)
    spoil(path, [2, 8])
    lost = np.zeros((HEIGHT, WIDTH), bool)
    lost[34:51] = lost[136:] = True
    check(open_raster(path), lost, pixels)


def test_a_broken_overview_has_chunks_of_its_own(tmp_path: Path) -> None:
    pixels, path = noise(1), tmp_path / "a.tif"
    small = np.ascontiguousarray(pixels[::2, ::2, 0])
    with tifffile.TiffWriter(path) as tif:
        tif.write(pixels[:, :, 0], tile=(64, 64), compression="deflate", metadata=None)
        tif.write(small, tile=(16, 16), compression="deflate", metadata=None, subfiletype=1)
    spoil(path, [6], page=1)
    lost = np.zeros(small.shape, bool)
    lost[16:32, 16:32] = True
    check(open_raster(path), lost, small[:, :, None], level=1)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [({"tile": (32, 48)}, Size(32, 48)), ({"rowsperstrip": 17}, Size(17, WIDTH)), ({}, Size(HEIGHT, WIDTH))],
    ids=["tiles", "strips", "one strip"],
)
def test_an_uncompressed_file_that_ends_too_early(
    tmp_path: Path, layout: dict[str, object], expected: Size
) -> None:
    pixels, path = noise(1), tmp_path / "a.tif"
    tifffile.imwrite(path, pixels[:, :, 0], metadata=None, **layout)
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        offsets, counts = page.dataoffsets, page.databytecounts
        columns = -(-WIDTH // page.tilewidth) if page.is_tiled else 1
    size = path.stat().st_size * 5 // 8
    with path.open("r+b") as f:
        f.truncate(size)
    raster = open_raster(path)
    assert raster.chunk == expected
    lost = np.zeros((HEIGHT, WIDTH), bool)
    for number, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        row, column = divmod(number, columns)
        y, x = row * expected.height, column * expected.width
        lost[y : y + expected.height, x : x + expected.width] |= offset + count > size
    check(raster, lost, pixels)


@pytest.mark.parametrize("shards", [None, (64, 64, 2)], ids=["chunks", "shards"])
def test_a_broken_zarr(tmp_path: Path, shards: tuple[int, ...] | None) -> None:
    pixels, path = noise(), tmp_path / "a.zarr"
    array = zarr.create_array(
        path, data=pixels, chunks=(32, 32, 2), shards=shards, compressors=zarr.codecs.GzipCodec(),
        attributes={"nodata": 255},
    )  # fmt: skip
    lost = np.zeros((HEIGHT, WIDTH), bool)
    file = path / array.metadata.encode_chunk_key((1, 1, 0))
    content = bytearray(file.read_bytes())
    content[:300] = b"\xff" * 300  # of a shard, the chunk that comes first in it
    file.write_bytes(content)
    if shards is None:
        lost[32:64, 32:64] = True
    else:
        lost[64:96, 64:96] = True
    failures = check(open_raster(path), lost, pixels)
    assert len(failures) == 1


def test_a_whole_image_has_no_failures(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(3), tile=(32, 32), photometric="rgb", metadata=None)
    pixels, valid, failures = read_what_can_be(
        open_raster(tmp_path / "a.tif"), Window(y=3, x=5, height=90, width=80)
    )
    np.testing.assert_array_equal(pixels, noise(3)[3:93, 5:85])
    assert valid is None
    assert failures == []


def test_a_broken_mask_page_loses_its_chunk(tmp_path: Path) -> None:
    pixels, path = noise(1), tmp_path / "a.tif"
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:20, :20] = 0
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", "GTiff", WIDTH, HEIGHT, 1, dtype="uint8", tiled=True, blockxsize=32, blockysize=32,
            compress="deflate", transform=rasterio.Affine.scale(2, -2),
        ) as file,
    ):  # fmt: skip
        file.write(pixels[:, :, 0], 1)
        file.write_mask(mask)
    spoil(path, [6], page=1)
    raster = open_raster(path)
    with pytest.raises(ReadError):
        raster.valid(whole(raster), raster.read(whole(raster)))
    everything, valid, failures = read_what_can_be(raster, whole(raster))
    assert valid is not None
    assert [f.window for f in failures] == [Window(y=32, x=32, height=32, width=32)]
    assert not valid[32:64, 32:64].any()
    assert not valid[:20, :20].any()
    assert valid.sum() == HEIGHT * WIDTH - 32 * 32 - 20 * 20
    np.testing.assert_array_equal(everything[:32], pixels[:32])


@given(st.lists(windows(), min_size=0, max_size=12))
def test_merging_keeps_every_pixel_and_no_other(found: list[Window]) -> None:
    truth, seen = np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), int)
    for window in found:
        truth[window.slices()] = True
    answer = merged(Failure(w, f"reason {i}") for i, w in enumerate(found))
    for failure in answer:
        seen[failure.window.slices()] += 1
        number = int(failure.reason.split()[1])
        assert found[number].intersect(failure.window).area
    np.testing.assert_array_equal(seen, truth)
    assert merged(answer) == answer


def test_chunks_side_by_side_become_one_rectangle() -> None:
    grid = [Window(y=32 * r, x=32 * c, height=32, width=32) for r in range(4) for c in range(5)]
    assert merged(Failure(w, "cut") for w in grid) == [
        Failure(Window(y=0, x=0, height=128, width=160), "cut")
    ]


def test_gdal_agrees_on_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", "GTiff", WIDTH, HEIGHT, 1, dtype="uint8", tiled=True, blockxsize=32, blockysize=32,
        compress="deflate", transform=rasterio.Affine.scale(2, -2), nodata=0,
    ) as file:  # fmt: skip
        file.write(noise(1)[:, :, 0], 1)
    spoil(path, [7])
    raster = open_raster(path)
    _, valid, _ = read_what_can_be(raster, whole(raster))
    assert valid is not None
    with rasterio.open(path) as file:
        for (_row, _column), block in file.block_windows(1):
            rows, columns = block.toslices()
            try:
                file.read(1, window=block)
            except rasterio.errors.RasterioIOError:
                assert not valid[rows, columns].any()
            else:
                assert valid[rows, columns].all()
