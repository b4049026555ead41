"""What stays decoded between windows: never too much, never wrong pixels, and fewer segments decoded."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from raysegment.errors import ReadError
from raysegment.geometry import Window
from raysegment.raster import open_raster
from raysegment.raster import page as page_module
from raysegment.raster import tiff as tiff_module
from raysegment.raster import zarr as zarr_module
from raysegment.raster.page import Page
from raysegment.raster.segment_cache import SegmentCache
from raysegment.raster.zarr import ZarrRaster

HEIGHT, WIDTH, TILE = 210, 330, 64
PIXELS = np.random.default_rng(0).integers(0, 250, (HEIGHT, WIDTH, 3), dtype=np.uint8)
TILE_BYTES = TILE * TILE * 3
LAYOUTS = {
    "tiled": {"tile": (TILE, TILE)},
    "planar": {"tile": (TILE, TILE), "planarconfig": "separate"},
    "striped": {"rowsperstrip": 32},
}
CHUNKS = {
    "chunks": {"chunks": (TILE, TILE, 3)},
    "shards": {"chunks": (TILE, TILE, 3), "shards": (128, 128, 3)},
}


def written(path: Path, layout: str = "tiled", codec: str | None = "deflate") -> Path:
    if layout in CHUNKS:
        array = zarr.create_array(path, shape=PIXELS.shape, dtype=PIXELS.dtype, **CHUNKS[layout])
        array[...] = PIXELS
        return path
    pixels = PIXELS if layout != "planar" else np.ascontiguousarray(PIXELS.transpose(2, 0, 1))
    tifffile.imwrite(
        path, pixels, photometric="rgb", compression=codec, predictor=codec is not None, metadata=None,
        **LAYOUTS[layout],
    )  # fmt: skip
    return path


def use(cache: SegmentCache, patch: pytest.MonkeyPatch) -> SegmentCache:
    """In place of the one that all images share."""
    for module in (page_module, tiff_module, zarr_module):
        patch.setattr(module, "DECODED", cache)
    return cache


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each segment was decoded."""
    counts: Counter[int] = Counter()
    original = Page._decoded
    monkeypatch.setattr(Page, "_decoded", lambda s, index: (counts.update([index]), original(s, index))[1])
    return counts


@st.composite
def windows(draw: st.DrawFn) -> Window:
    y, x = draw(st.integers(0, HEIGHT - 1)), draw(st.integers(0, WIDTH - 1))
    return Window(y=y, x=x, height=draw(st.integers(1, HEIGHT - y)), width=draw(st.integers(1, WIDTH - x)))


def blocks(edge: int, rim: int) -> list[Window]:
    """Of the whole image, row by row, each with a rim that its neighbours read, too."""
    return [
        Window.between(
            max(0, y - rim), max(0, x - rim), min(HEIGHT, y + edge + rim), min(WIDTH, x + edge + rim)
        )
        for y in range(0, HEIGHT, edge)
        for x in range(0, WIDTH, edge)
    ]


@pytest.mark.parametrize("layout", [*LAYOUTS, *CHUNKS])
def test_threads_that_share_a_raster_read_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, layout: str
) -> None:
    path = written(tmp_path_factory.mktemp("shared") / "a", layout)
    expected = zarr.open_array(path, mode="r")[...] if layout in CHUNKS else tifffile.imread(path)
    if layout == "planar":
        expected = expected.transpose(1, 2, 0)

    @given(st.lists(st.lists(windows(), min_size=1, max_size=6), min_size=2, max_size=4), st.integers(0, 40))
    def check(of_threads: list[list[Window]], room: int) -> None:
        wrong: list[Window] = []

        def work(mine: list[Window]) -> None:
            for window in mine:
                pixels = raster.read(window)
                if not np.array_equal(pixels, expected[window.slices()]):
                    wrong.append(window)
                pixels[:] = 255  # what was handed out is the caller's own
                if cache.bytes > cache.most_bytes:
                    wrong.append(window)

        with pytest.MonkeyPatch.context() as patch:
            cache = use(SegmentCache(room * TILE_BYTES), patch)
            raster = open_raster(path)
            threads = [threading.Thread(target=work, args=(mine,)) for mine in of_threads]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            raster.close()
        assert not wrong
        assert cache.bytes == 0

    check()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_in_a_row_decode_no_segment_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: Counter[int], layout: str
) -> None:
    path = written(tmp_path / "a.tif", layout)
    row = [w for w in blocks(edge=90, rim=6) if w.y == 84]
    assert len(row) == 4

    def count(room: int) -> int:
        use(SegmentCache(room), monkeypatch)
        decoded.clear()
        raster = open_raster(path)
        for window in row:
            np.testing.assert_array_equal(raster.read(window), PIXELS[window.slices()])
        return decoded.total()

    without, once = count(0), len(decoded)
    assert without > once
    assert count(1 << 20) == once
    assert set(decoded.values()) == {1}


def test_blocks_in_a_row_fetch_no_column_of_chunks_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(SegmentCache(1 << 20), monkeypatch)
    fetched: list[Window] = []
    original = ZarrRaster._fetched
    monkeypatch.setattr(ZarrRaster, "_fetched", lambda s, w, n: (fetched.append(w), original(s, w, n))[1])
    raster = open_raster(written(tmp_path / "a.zarr", "chunks"))
    for window in (w for w in blocks(edge=140, rim=6) if w.y == 134):
        np.testing.assert_array_equal(raster.read(window), PIXELS[window.slices()])
    assert [(w.x, w.right) for w in fetched] == [(0, 192), (192, 320), (320, WIDTH)]
    assert {(w.y, w.bottom) for w in fetched} == {(134, HEIGHT)}
    raster.close()


@pytest.mark.parametrize("layout", ["tiled", "chunks"])
def test_windows_on_the_grid_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    cache = use(SegmentCache(1 << 20), monkeypatch)
    raster = open_raster(written(tmp_path / "a", layout))
    for window in blocks(edge=2 * TILE, rim=0):
        raster.read(window)
        assert cache.bytes == 0


def test_nothing_is_kept_of_bare_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = use(SegmentCache(1 << 20), monkeypatch)
    open_raster(written(tmp_path / "a.tif", codec=None)).read(Window(y=5, x=5, height=20, width=20))
    assert cache.bytes == 0


def test_nothing_is_kept_of_a_column_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = use(SegmentCache(2 * WIDTH * 32 * 3), monkeypatch)
    raster = open_raster(written(tmp_path / "a.tif", "striped"))
    raster.read(Window(y=0, x=0, height=65, width=20))
    assert cache.bytes == 0


def test_a_broken_segment_is_broken_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = use(SegmentCache(1 << 20), monkeypatch)
    path = written(tmp_path / "bad.tif")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages.first.dataoffsets[7]  # y 64–128, x 64–128
    with path.open("r+b") as f:
        f.seek(offset)
        f.write(b"\xff" * 200)
    raster = open_raster(path)
    for window in (Window(y=64, x=40, height=30, width=50), Window(y=64, x=90, height=64, width=9)) * 2:
        with pytest.raises(ReadError, match="the segment at y 64–128, x 64–128 is broken"):
            raster.read(window)
    assert cache.bytes <= TILE_BYTES  # its neighbour to the left


def test_a_closed_image_answers_no_more_and_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = use(SegmentCache(1 << 20), monkeypatch)
    window = Window(y=0, x=0, height=20, width=20)
    other = open_raster(written(tmp_path / "b.tif"))
    raster = open_raster(written(tmp_path / "a.tif"))
    raster.read(window)
    other.read(window)
    assert cache.bytes == 2 * TILE_BYTES
    raster.close()
    assert cache.bytes == TILE_BYTES
    with pytest.raises(ReadError, match="closed"):
        raster.read(window)
    np.testing.assert_array_equal(other.read(window), PIXELS[window.slices()])


# ---- the cache alone

PLACE = Window(y=0, x=0, height=10, width=10)
TO_THE_RIGHT = Window(y=0, x=0, height=10, width=5)
BELOW = Window(y=0, x=0, height=5, width=10)


@given(
    st.integers(0, 60),
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 20), st.sampled_from([PLACE, TO_THE_RIGHT, BELOW, None]))
    ),
)
def test_the_bound_holds(room: int, steps: list[tuple[int, int, Window | None]]) -> None:
    cache = SegmentCache(room)
    newest: dict[int, np.ndarray] = {}
    for name, size, part in steps:
        if part is None:
            taken = cache.take(("image", name))
            assert taken is None or taken is newest[name]
            assert cache.take(("image", name)) is None
        else:
            newest[name] = np.zeros(size, np.uint8)
            cache.keep(("image", name), newest[name], PLACE, part)
        assert cache.bytes <= room
    left = [pixels for name in range(10) if (pixels := cache.take(("image", name))) is not None]
    assert cache.bytes == 0
    assert sum(pixels.nbytes for pixels in left) <= room


def test_what_the_next_window_wants_stays_longest() -> None:
    cache = SegmentCache(40)
    for name, part in (("a", TO_THE_RIGHT), ("b", BELOW), ("c", BELOW), ("d", TO_THE_RIGHT)):
        cache.keep(("image", name), np.zeros(10, np.uint8), PLACE, part)
    for name in "efg":
        cache.keep(("image", name), np.zeros(10, np.uint8), PLACE, TO_THE_RIGHT)
    assert cache.bytes == 40
    assert [name for name in "abcdefg" if cache.take(("image", name)) is not None] == list("defg")


def test_what_is_wholly_used_or_too_large_is_not_kept() -> None:
    cache = SegmentCache(40)
    cache.keep(("image", 0), np.zeros(10, np.uint8), PLACE, TO_THE_RIGHT)
    cache.keep(("image", 1), np.zeros(10, np.uint8), PLACE, PLACE)
    cache.keep(("image", 2), np.zeros(41, np.uint8), PLACE, TO_THE_RIGHT)
    assert cache.bytes == 10
    assert cache.take(("image", 0)) is not None
