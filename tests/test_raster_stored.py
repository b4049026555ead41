"""Which chunks are in a file at all: made sparse TIFFs and Zarrs, the writers' own words as oracle."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from PIL import Image

from raysegment.geometry import Size, Window
from raysegment.raster import Raster, open_raster
from raysegment.raster.stored import Stored

HEIGHT, WIDTH = 150, 131
EDGE = 32
ROWS, COLUMNS = 5, 5
#: Chunks that are written; the others are left out.
CHOSEN = [(0, 0), (1, 3), (4, 4), (2, 1)]


def chosen_grid() -> np.ndarray:
    grid = np.zeros((ROWS, COLUMNS), bool)
    grid[tuple(np.transpose(CHOSEN))] = True
    return grid


def painted(*, dtype: str = "uint8") -> np.ndarray:
    """Zeros but for the chosen chunks."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype)
    for row, column in CHOSEN:
        pixels[row * EDGE : (row + 1) * EDGE, column * EDGE : (column + 1) * EDGE] = 7
    return pixels


def checked(raster: Raster, level: int = 0) -> Stored:
    """What is stored, after it was seen that it is told once and that nothing is left out that has pixels."""
    stored = raster.stored(level)
    assert stored is not None
    assert raster.stored(level) is stored
    assert not stored.grid.flags.writeable
    height, width = raster.levels[level]
    pixels = raster.read(Window(y=0, x=0, height=height, width=width), level)
    h, w = stored.chunk
    assert stored.grid.shape == (-(-height // h), -(-width // w))
    for row, column in np.ndindex(stored.grid.shape):
        part = pixels[row * h : (row + 1) * h, column * w : (column + 1) * w]
        assert stored.grid[row, column] or not part.any()
    return stored


def test_a_level_that_is_all_there_has_no_grid() -> None:
    assert Stored.unless_whole(Size(EDGE, EDGE), np.ones((2, 2), bool)) is None
    assert Stored.unless_whole(Size(EDGE, EDGE), chosen_grid()) is not None


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_gdal_leaves_out_empty_tiles(tmp_path: Path, interleave: str, compress: str) -> None:
    path = tmp_path / "sparse.tif"
    with rasterio.open(
        path, "w", "GTiff", WIDTH, HEIGHT, 2, dtype="uint8", tiled=True, blockxsize=EDGE, blockysize=EDGE,
        sparse_ok=True, interleave=interleave, compress=compress, transform=rasterio.Affine.scale(2, -2),
    ) as file:  # fmt: skip
        file.write(painted(), 2)  # one band holds something: the tile is there
    stored = checked(open_raster(path))
    assert stored.chunk == Size(EDGE, EDGE)
    np.testing.assert_array_equal(stored.grid, chosen_grid())


def test_overviews_have_tiles_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    with rasterio.open(
        path, "w", "GTiff", 1000, 900, 1, dtype="uint8", tiled=True, blockxsize=64, blockysize=64,
        sparse_ok=True, compress="deflate", transform=rasterio.Affine.scale(2, -2),
    ) as file:  # fmt: skip
        file.write(np.full((60, 60), 9, np.uint8), 1, window=rasterio.windows.Window(70, 130, 60, 60))
    with (
        rasterio.Env(GDAL_TIFF_OVR_BLOCKSIZE=128, SPARSE_OK_OVERVIEW=True),
        rasterio.open(path, "r+") as file,
    ):
        file.build_overviews([2])
    raster = open_raster(path)
    assert [tuple(c) for c in raster.chunks] == [(64, 64), (128, 128)]
    assert checked(raster).grid.sum() == 2
    assert checked(raster, 1).grid.sum() == 1


def test_tifffile_leaves_out_tiles(tmp_path: Path) -> None:
    pixels, tiles = painted(), []
    padded = np.pad(pixels, ((0, ROWS * EDGE - HEIGHT), (0, COLUMNS * EDGE - WIDTH)))
    for row, column in np.ndindex(ROWS, COLUMNS):
        tile = padded[row * EDGE : (row + 1) * EDGE, column * EDGE : (column + 1) * EDGE]
        tiles.append(tile if tile.any() else None)
    path = tmp_path / "tiles.tif"
    tifffile.imwrite(
        path, iter(tiles), shape=pixels.shape, dtype=pixels.dtype, tile=(EDGE, EDGE), metadata=None
    )
    np.testing.assert_array_equal(checked(open_raster(path)).grid, chosen_grid())


def test_gdal_leaves_out_empty_strips(tmp_path: Path) -> None:
    path = tmp_path / "strips.tif"
    with rasterio.open(
        path, "w", "GTiff", WIDTH, HEIGHT, 1, dtype="uint8", blockysize=50, sparse_ok=True,
        transform=rasterio.Affine.scale(2, -2),
    ) as file:  # fmt: skip
        file.write(np.full((50, WIDTH), 3, np.uint8), 1, window=rasterio.windows.Window(0, 50, WIDTH, 50))
    stored = checked(open_raster(path))
    assert stored.chunk == Size(50, WIDTH)
    assert stored.grid.tolist() == [[False], [True], [False]]


def test_whole_files_say_so(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 255, (HEIGHT, WIDTH), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", noise, tile=(EDGE, EDGE), metadata=None)
    planes = np.stack([noise] * 9)  # ImageJ writes a header for the first alone
    tifffile.imwrite(tmp_path / "b.tif", planes, imagej=True, metadata={"axes": "ZYX"})
    Image.fromarray(noise).save(tmp_path / "a.png")
    zarr.create_array(tmp_path / "a.zarr", data=noise, chunks=(EDGE, EDGE), shards=(2 * EDGE, 2 * EDGE))
    assert open_raster(tmp_path / "a.tif").stored() is None
    assert open_raster(tmp_path / "b.tif", select={"z": 1}).stored() is None
    assert open_raster(tmp_path / "a.png").stored() is None
    assert open_raster(tmp_path / "a.zarr").stored() is None


ZARRS: dict[str, dict[str, Any]] = {
    "v2 flat": {"zarr_format": 2, "chunks": (EDGE, EDGE)},
    "v2 nested": {
        "zarr_format": 2, "chunks": (EDGE, EDGE), "chunk_key_encoding": {"name": "v2", "separator": "/"},
    },
    "v3": {"chunks": (EDGE, EDGE)},
    "v3 flat": {"chunks": (EDGE, EDGE), "chunk_key_encoding": {"name": "default", "separator": "."}},
    "sharded": {"chunks": (EDGE, EDGE), "shards": (2 * EDGE, 3 * EDGE)},
}  # fmt: skip


@pytest.mark.parametrize("options", ZARRS.values(), ids=ZARRS)
def test_zarr_leaves_out_empty_chunks(tmp_path: Path, options: dict[str, Any]) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=painted(), **options)
    raster = open_raster(tmp_path / "a.zarr")
    stored = checked(raster)
    assert stored.chunk == Size(EDGE, EDGE)
    np.testing.assert_array_equal(stored.grid, chosen_grid())
    again = pickle.loads(pickle.dumps(raster)).stored()
    np.testing.assert_array_equal(again.grid, stored.grid)


def test_a_shard_index_at_the_start(tmp_path: Path) -> None:
    codec = zarr.codecs.ShardingCodec(chunk_shape=(EDGE, EDGE), index_location="start")
    array = zarr.create(
        store=tmp_path / "a.zarr", shape=(HEIGHT, WIDTH), chunks=(2 * EDGE, 2 * EDGE), dtype="uint8",
        codecs=[codec], zarr_format=3, fill_value=0,
    )  # fmt: skip
    array[...] = painted()
    np.testing.assert_array_equal(checked(open_raster(tmp_path / "a.zarr")).grid, chosen_grid())


@pytest.mark.parametrize("shards", [None, (2, 2, 2 * EDGE, 2 * EDGE)], ids=["chunks", "shards"])
def test_the_chosen_plane_alone_counts_and_any_channel(
    tmp_path: Path, shards: tuple[int, ...] | None
) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(4, 3, HEIGHT, WIDTH), dtype="uint8", chunks=(1, 1, EDGE, EDGE),
        shards=shards, dimension_names=("z", "c", "y", "x"), fill_value=0,
    )  # fmt: skip
    array[2, 1] = painted()
    array[1] = 5  # another plane
    array[3, 2, :EDGE, :EDGE] = 1
    at = {z: open_raster(tmp_path / "a.zarr", select={"z": z}) for z in range(4)}
    np.testing.assert_array_equal(checked(at[2]).grid, chosen_grid())
    assert not checked(at[0]).grid.any()
    assert at[1].stored() is None
    assert np.argwhere(checked(at[3]).grid).tolist() == [[0, 0]]


def test_a_shard_that_cannot_be_read_counts_as_there(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=painted(), chunks=(EDGE, EDGE), shards=(2 * EDGE, 2 * EDGE))
    shard = tmp_path / "a.zarr" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:20])
    stored = open_raster(tmp_path / "a.zarr").stored()
    assert stored is not None
    assert stored.grid[:2, :2].all()
    np.testing.assert_array_equal(stored.grid[2:], chosen_grid()[2:])
