"""Images at URLs, against the same files on the disk: from memory, and over HTTP with range requests."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from web import Web, serve

from raysegment.errors import GoneError, InputError, StorageError, UsageError
from raysegment.geometry import Window
from raysegment.raster import open_raster
from raysegment.storage import Url, location
from raysegment.storage.objects import put, remove, zarr_store
from raysegment.storage.url_file import AHEAD_BYTES, GAP_BYTES, UrlFile

FLAVOURS = {
    "tiled": {"tile": (64, 64), "compression": "deflate"},
    "striped": {"rowsperstrip": 16, "compression": "zstd"},
    "bare": {"rowsperstrip": 16},
    "bare tiles": {"tile": (64, 96)},
    "one strip": {"rowsperstrip": 300, "compression": "deflate", "predictor": 2},
    "planar": {"planarconfig": "separate", "tile": (64, 64)},
}


@pytest.fixture
def web(tmp_path: Path):
    with serve(tmp_path) as server:
        yield server


@pytest.fixture
def memory():
    yield location("memory://test")
    remove(location("memory://test"))


def picture(seed: int = 1, shape: tuple[int, ...] = (300, 400, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 60, shape).astype(np.uint8)


def write_tiff(path: Path, pixels: np.ndarray, **how: object) -> Path:
    import tifffile

    if how.get("planarconfig") == "separate":
        pixels = pixels.transpose(2, 0, 1)
    tifffile.imwrite(path, pixels, photometric="rgb", **how)
    return path


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_tiff_over_http_reads_like_the_file(web: Web, tmp_path: Path, flavour: str) -> None:
    pixels = picture()
    path = write_tiff(tmp_path / "a.tif", pixels, **FLAVOURS[flavour])
    here, there = open_raster(path), open_raster(f"{web.url}/a.tif")
    again = pickle.loads(pickle.dumps(there))
    assert (there.shape, there.dtype, there.chunks, there.format) == (
        here.shape,
        here.dtype,
        here.chunks,
        here.format,
    )
    for window in (
        Window(y=0, x=0, height=300, width=400),
        Window(y=10, x=70, height=100, width=150),
        Window(y=299, x=399, height=1, width=1),
    ):
        assert np.array_equal(there.read(window), pixels[window.slices()])
        assert np.array_equal(again.read(window), pixels[window.slices()])


def test_a_window_brings_its_tiles_in_one_request_and_no_more(web: Web, tmp_path: Path) -> None:
    pixels = picture(shape=(2048, 2048, 3))
    path = write_tiff(tmp_path / "a.tif", pixels, tile=(256, 256))
    raster = open_raster(f"{web.url}/a.tif")
    web.requests.clear()
    row_of_tiles = Window(y=1024, x=0, height=256, width=2048)
    assert np.array_equal(raster.read(row_of_tiles), pixels[row_of_tiles.slices()])
    assert len(web.requests) == 1
    assert sum(web.requests) <= 256 * 2048 * 3 + GAP_BYTES
    assert path.stat().st_size > 4 * sum(web.requests)


def test_bare_rows_are_not_asked_for_one_by_one(web: Web, tmp_path: Path) -> None:
    pixels = picture(shape=(600, 2000, 3))
    write_tiff(tmp_path / "a.tif", pixels, rowsperstrip=600)
    raster = open_raster(f"{web.url}/a.tif")
    web.requests.clear()
    window = Window(y=100, x=300, height=400, width=500)
    assert np.array_equal(raster.read(window), pixels[window.slices()])
    assert len(web.requests) <= 2


def test_what_is_expected_comes_in_bounded_batches(memory: Url) -> None:
    content = np.random.default_rng(0).bytes(3 * AHEAD_BYTES + 77)
    put(memory / "big", content)
    file = UrlFile(memory / "big")
    step = 1_000_003
    places = [(at, min(step, len(content) - at)) for at in range(0, len(content), step)]
    file.expect(places)
    for at, count in places:
        assert file.read(at, count) == content[at : at + count]
        held = sum(map(len, file._mine.pieces))
        assert held <= AHEAD_BYTES + step
    assert file.read(5, 7) == content[5:12]
    with pytest.raises(EOFError):
        file.read(len(content) - 1, 2)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_zarr_in_memory_reads_like_its_folder(memory: Url, tmp_path: Path, sharded: bool) -> None:
    pixels = picture(shape=(300, 400))
    for place in (tmp_path / "a.zarr", memory / "a.zarr"):
        group = zarr.create_group(zarr_store(place))
        array = group.create_array(
            "image",
            shape=pixels.shape,
            chunks=(64, 64),
            shards=(128, 128) if sharded else None,
            dtype=np.uint8,
            dimension_names=("y", "x"),
            fill_value=7,
        )
        array[:128, :200] = pixels[:128, :200]
    here, there = open_raster(tmp_path / "a.zarr"), open_raster(str(memory / "a.zarr"))
    window = Window(y=50, x=60, height=200, width=300)
    assert np.array_equal(there.read(window), here.read(window))
    mine, theirs = here.stored(), there.stored()
    assert mine is not None
    assert theirs is not None
    assert np.array_equal(mine.grid, theirs.grid)


def test_a_zarr_over_http_has_no_listing(web: Web, tmp_path: Path) -> None:
    pixels = picture(shape=(300, 400))
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(64, 64), dimension_names=("y", "x"))
    raster = open_raster(f"{web.url}/a.zarr")
    assert np.array_equal(raster.read(Window(y=0, x=0, height=300, width=400)), pixels[..., None])
    assert raster.stored() is None
    before = raster.identity()
    assert before == open_raster(f"{web.url}/a.zarr").identity()


def test_a_png_over_http(web: Web, tmp_path: Path) -> None:
    from PIL import Image

    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(
        open_raster(f"{web.url}/a.png").read(Window(y=5, x=6, height=70, width=80)), pixels[5:75, 6:86]
    )


def test_the_identity_is_the_contents(memory: Url, tmp_path: Path, web: Web) -> None:
    write_tiff(tmp_path / "a.tif", picture(1))
    shutil.copy(tmp_path / "a.tif", tmp_path / "b.tif")
    write_tiff(tmp_path / "c.tif", picture(2))
    web.says_etag = True
    a, b, c = (open_raster(f"{web.url}/{name}.tif").identity() for name in "abc")
    assert a == b != c


def test_a_server_without_ranges_is_refused(web: Web, tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", picture())
    web.answers_ranges = False
    with pytest.raises(InputError, match="range requests"):
        open_raster(f"{web.url}/a.tif")


@pytest.mark.parametrize(
    ("status", "message"), [(403, "no right to"), (404, "does not exist"), (410, "the storage answers 410")]
)
def test_a_refusal_is_one_line_before_work(web: Web, tmp_path: Path, status: int, message: str) -> None:
    web.failures = [status] * 99
    with pytest.raises(InputError, match=message):
        open_raster(f"{web.url}/a.tif")


def test_what_passes_is_tried_again(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda s: None)
    pixels = picture()
    write_tiff(tmp_path / "a.tif", pixels, tile=(64, 64))
    raster = open_raster(f"{web.url}/a.tif")
    web.failures = [503, 500]
    assert np.array_equal(raster.read(Window(y=0, x=0, height=300, width=400)), pixels)
    assert not web.failures


def test_an_object_that_vanishes_is_no_broken_tile(web: Web, tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(), tile=(64, 64))
    raster = open_raster(f"{web.url}/a.tif")
    path.unlink()
    with pytest.raises(GoneError, match=r"a\.tif: it does not exist"):
        raster.read(Window(y=0, x=0, height=300, width=400))


def test_a_broken_tile_at_a_url_is_a_broken_tile(web: Web, tmp_path: Path) -> None:
    from raysegment.errors import ReadError

    path = write_tiff(tmp_path / "a.tif", picture(), tile=(64, 64), compression="deflate")
    data = bytearray(path.read_bytes())
    data[5000:6000] = bytes(1000)
    path.write_bytes(data)
    with pytest.raises(ReadError, match="is broken") as caught:
        open_raster(f"{web.url}/a.tif").read(Window(y=0, x=0, height=300, width=400))
    assert not isinstance(caught.value, StorageError)


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match="ftp://"):
        open_raster("ftp://host/a.tif")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from raysegment.storage import remote

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    remote._of_scheme.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'raysegment\[gs\]'"):
        open_raster("gs://bucket/a.tif")
