"""A copy is the image: pixels, validity and everything else, whatever the layout; made once, or not at all."""

from __future__ import annotations

import pickle
import resource
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.errors import InputError, ReadError
from raysegment.geometry import Size, Window
from raysegment.raster import Raster, large_segment, layout, open_raster, page
from raysegment.raster import transcode as module
from raysegment.raster.layout import Layout
from raysegment.raster.segment_stream import SegmentStream
from raysegment.raster.transcode import transcode
from raysegment.raster.transcoded import open_transcoded

HEIGHT, WIDTH = 301, 257


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything as with huge images: chunks of 16, shards of 64, segments above 4 kB are large."""
    monkeypatch.setattr(layout, "_CHUNK_PX", 16)
    monkeypatch.setattr(layout, "_SHARD_PX", 64)
    monkeypatch.setattr(layout, "HELD_BYTES", 1 << 15)
    monkeypatch.setattr(module, "HELD_BYTES", 1 << 15)
    monkeypatch.setattr(module, "LARGE_BYTES", 1 << 12)
    monkeypatch.setattr(page, "LARGE_BYTES", 1 << 12)
    monkeypatch.setattr(module.os, "fsync", lambda fd: None)  # slow, and no power is cut here


def random_pixels(dtype: str, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(1)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=(HEIGHT, WIDTH, channels)).astype(dtype)
    return rng.integers(0, min(200, np.iinfo(dtype).max), (HEIGHT, WIDTH, channels)).astype(dtype)


def write_tiff(path: Path, pixels: np.ndarray, **options: Any) -> None:
    if options.get("planarconfig") == "separate":
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    tifffile.imwrite(path, pixels, metadata=None, **{"photometric": "rgb", **options})


def one_strip(path: Path) -> None:
    write_tiff(path, random_pixels("uint8"), rowsperstrip=HEIGHT, compression="deflate")


def with_mask(path: Path) -> None:
    seen = np.zeros((HEIGHT, WIDTH), bool)
    seen[40:280, 30:200] = True
    with tifffile.TiffWriter(path) as tif:
        tif.write(
            random_pixels("uint8"), photometric="rgb", rowsperstrip=HEIGHT, compression="lzma", metadata=None
        )
        tif.write(
            seen, subfiletype=4, photometric="mask", rowsperstrip=HEIGHT, compression="deflate", metadata=None
        )


def float_with_nan(path: Path) -> None:
    pixels = random_pixels("float32", 1)[:, :, 0]
    pixels[10:60, 20:90] = np.nan
    pixels[100:140, 20:90] = -9999
    pixels[200:, 0] = -0.0
    nodata = (42113, "s", 0, "-9999", True)
    write_tiff(
        path, pixels, photometric="minisblack", tile=(160, 160), compression="zstd", extratags=[nodata]
    )


def with_palette(path: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    pixels = random_pixels("uint8", 1)[:, :, 0]
    write_tiff(path, pixels, photometric="palette", colormap=colours, compression="lzw", rowsperstrip=HEIGHT)


def with_alpha(path: Path) -> None:
    pixels = random_pixels("uint16", 4)
    pixels[:100, :, 3] = 0
    write_tiff(path, pixels, extrasamples=["unassalpha"], rowsperstrip=50, compression="deflate", predictor=2)


def georeferenced(path: Path) -> None:
    tags = [
        (33550, "d", 3, (10.0, 10.0, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 5e5, 4e6, 0.0), True),
        (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32643), True),
    ]
    write_tiff(
        path, random_pixels("int16"), tile=(256, 256), compression="deflate", predictor=2, extratags=tags
    )


def planar(path: Path) -> None:
    write_tiff(
        path, random_pixels("uint16"), planarconfig="separate", rowsperstrip=HEIGHT, compression="zstd",
        predictor=2, byteorder=">",
    )  # fmt: skip


def planar_lzw(path: Path) -> None:
    write_tiff(path, random_pixels("uint8"), planarconfig="separate", rowsperstrip=HEIGHT, compression="lzw")


def uncompressed(path: Path) -> None:
    write_tiff(path, random_pixels("uint8"), rowsperstrip=HEIGHT)


def pages(path: Path) -> None:
    channels = random_pixels("uint16").transpose(2, 0, 1)
    tifffile.imwrite(
        path, channels, ome=True, metadata={"axes": "CYX"}, compression="deflate", rowsperstrip=HEIGHT
    )


def small_tiles(path: Path) -> None:
    write_tiff(path, random_pixels("uint8"), tile=(32, 48), compression="deflate")


def zarr_plane(path: Path) -> None:
    """One chunk per channel, cut from a stack."""
    pixels = random_pixels("uint8").transpose(2, 0, 1)
    array = zarr.create_array(
        path,
        shape=(2, *pixels.shape),
        chunks=(1, 1, HEIGHT, WIDTH),
        dtype="u1",
        dimension_names=("z", "c", "y", "x"),
    )
    array[0], array[1] = pixels[::-1], pixels


def zarr_prime(path: Path) -> None:
    """Chunks that no shard fits."""
    pixels = random_pixels("float32")
    array = zarr.create_array(path, shape=pixels.shape, chunks=(97, 101, 3), dtype="f4")
    array[:] = pixels


SOURCES = {
    "one strip": (one_strip, {}), "mask page": (with_mask, {}), "NaN and nodata": (float_with_nan, {}),
    "palette": (with_palette, {}), "alpha": (with_alpha, {}), "georeferenced": (georeferenced, {}),
    "planar": (planar, {}), "planar LZW": (planar_lzw, {}), "uncompressed": (uncompressed, {}),
    "pages": (pages, {}), "small tiles": (small_tiles, {}),
    "Zarr plane": (zarr_plane, {"z": 1}), "Zarr prime": (zarr_prime, {}),
}  # fmt: skip


@pytest.fixture(params=SOURCES)
def original(request: pytest.FixtureRequest, tmp_path: Path) -> Raster:
    write, select = SOURCES[request.param]
    write(tmp_path / "image")
    return open_raster(tmp_path / "image", select=select)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    y, x = draw(st.integers(0, HEIGHT - 1)), draw(st.integers(0, WIDTH - 1))
    return Window(y=y, x=x, height=draw(st.integers(1, HEIGHT - y)), width=draw(st.integers(1, WIDTH - x)))


def assert_same(copy: Raster, original: Raster, window: Window) -> None:
    pixels, expected = copy.read(window), original.read(window)
    assert pixels.dtype == expected.dtype
    assert pixels.flags.c_contiguous
    assert pixels.tobytes() == expected.tobytes()  # -0.0 and NaN too
    valid, has = copy.valid(window, pixels), original.valid(window, expected)
    everywhere = np.ones(window.size, bool)
    np.testing.assert_array_equal(everywhere if valid is None else valid, everywhere if has is None else has)


def test_the_copy_is_the_image(original: Raster, tmp_path: Path) -> None:
    done: list[int] = []
    store = transcode(original, tmp_path / "scratch", identity="me", progress=done.append)
    assert sum(done) == HEIGHT * WIDTH
    pristine = open_raster(original.path, select=original.select)
    copy = pickle.loads(pickle.dumps(open_transcoded(store, pristine)))
    assert isinstance(copy, Raster)
    assert copy.identity() == "me"
    for name in (
        "path", "select", "format", "shape", "dtype", "levels", "pixel_size", "crs", "transform", "nodata",
        "alpha", "palette",
    ):  # fmt: skip
        assert getattr(copy, name) == getattr(pristine, name), name
    assert copy.chunk.area <= 32**2
    assert_same(copy, pristine, Window(y=0, x=0, height=HEIGHT, width=WIDTH))

    @settings(max_examples=12)
    @given(windows())
    def crops(window: Window) -> None:
        assert_same(copy, pristine, window)

    crops()
    files = [p for p in store.rglob("*") if p.is_file() and p.name != "zarr.json"]
    assert len(files) <= 2 * (HEIGHT // 32 + 1) * (WIDTH // 32 + 1)


def test_every_chunk_is_decoded_once(
    original: Raster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, streamed, got = [], [], []
    lock = threading.Lock()

    def note(things: list[Any], thing: Any) -> None:
        with lock:
            things.append(thing)

    whole, begin = page.Page._decoded, SegmentStream.__init__
    monkeypatch.setattr(page.Page, "_decoded", lambda s, i: (note(decoded, (id(s), i)), whole(s, i))[1])
    monkeypatch.setattr(
        SegmentStream,
        "__init__",
        lambda s, key, packed, *a: (note(streamed, packed._at), begin(s, key, packed, *a))[1],
    )
    read = zarr.storage.LocalStore.get
    if Path(original.path).is_dir():

        async def counted(self: Any, key: str, *a: Any, **k: Any) -> Any:
            if str(self.root) == original.path and "c/" in key:
                note(got, key)
            return await read(self, key, *a, **k)

        monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    raster = open_raster(original.path, select=original.select)
    transcode(raster, tmp_path / "scratch", identity="me")
    assert len(set(decoded)) == len(decoded)
    assert len(set(streamed)) == len(streamed)
    assert len(set(got)) == len(got)
    assert decoded or streamed or got or raster.chunk == Size(256, 256)  # bare samples: nothing to decode


@given(
    st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 40),
    st.booleans(),
)  # fmt: skip
def test_windows_tile_the_image_in_whole_chunks(
    height: int, width: int, chunk_height: int, chunk_width: int, pixel_bytes: int, in_parts: bool
) -> None:
    size, source = Size(height, width), Size(min(chunk_height, height), min(chunk_width, width))
    found = Layout.of(size, source, pixel_bytes)
    assert found.shard.height % found.chunk.height == 0
    assert found.shard.width % found.chunk.width == 0
    rows = sorted({(w.y, w.bottom) for w in found.windows(size, pixel_bytes, in_parts)})
    columns = sorted({(w.x, w.right) for w in found.windows(size, pixel_bytes, in_parts)})
    for spans, length, unit in ((rows, height, source.height), (columns, width, source.width)):
        assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])]
        assert spans[-1][1] == length
        assert in_parts or all(a % unit == 0 for a, _ in spans)
    assert len(list(found.windows(size, pixel_bytes, in_parts))) <= len(rows) * len(columns)


def test_a_level_of_a_pyramid(tmp_path: Path) -> None:
    levels = [random_pixels("uint8"), random_pixels("uint8")[::2, ::2]]
    with tifffile.TiffWriter(tmp_path / "p.tif") as tif:
        tif.write(levels[0], subifds=1, tile=(160, 160), photometric="rgb", compression="lzw", metadata=None)
        tif.write(
            levels[1], subfiletype=1, rowsperstrip=151, photometric="rgb", compression="lzw", metadata=None
        )
    original = open_raster(tmp_path / "p.tif")
    copy = open_transcoded(transcode(original, tmp_path, identity="me", level=1), original)
    (tmp_path / "p.tif").write_bytes(b"")  # the level of the copy is not read from there
    np.testing.assert_array_equal(
        copy.read(Window(y=7, x=5, height=140, width=120), 1), levels[1][7:147, 5:125]
    )
    with pytest.raises(ReadError):
        copy.read(Window(y=7, x=5, height=140, width=120), 0)


def test_a_second_call_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_strip(tmp_path / "x.tif")
    raster = open_raster(tmp_path / "x.tif")
    store = transcode(raster, tmp_path / "s", identity="me")
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*")}
    monkeypatch.setattr(type(raster), "read", None)
    assert transcode(raster, tmp_path / "s", identity="me") == store
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*")} == before
    with pytest.raises(TypeError):  # another identity is another image
        transcode(raster, tmp_path / "s", identity="you")


def test_callers_at_once_share_one_copy(tmp_path: Path) -> None:
    one_strip(tmp_path / "x.tif")
    code = (
        "import sys; from pathlib import Path; from raysegment.raster import open_raster\n"
        "from raysegment.raster.transcode import transcode\n"
        "done = []\n"
        "transcode(open_raster(sys.argv[1]), Path(sys.argv[2]), identity='me', progress=done.append)\n"
        "print(sum(done))"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "x.tif"), str(tmp_path / "s")]
    processes = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(int(p.communicate()[0]) for p in processes) == [0, HEIGHT * WIDTH]


def break_strip(path: Path) -> None:
    one_strip(path)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]
    with open(path, "r+b") as f:
        f.seek(offset + count // 2)
        f.write(bytes(1000))


def test_a_broken_segment_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    break_strip(tmp_path / "x.tif")
    raster = open_raster(tmp_path / "x.tif")
    with pytest.raises(ReadError, match=r"cannot read y \d+–\d+, x 0–257: the segment at .* is broken"):
        transcode(raster, tmp_path / "s", identity="me")
    assert [p.suffix for p in (tmp_path / "s").iterdir()] == [".lock"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    one_strip(tmp_path / "x.tif")
    raster = open_raster(tmp_path / "x.tif")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # the nearest to a full disk that a test can make
    try:
        with pytest.raises(OSError, match=r"too large") as caught:
            transcode(raster, tmp_path / "s", identity="me")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename
    assert [p.suffix for p in (tmp_path / "s").iterdir()] == [".lock"]
    assert open_transcoded(transcode(raster, tmp_path / "s", identity="me"), raster).shape == raster.shape


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    one_strip(tmp_path / "x.tif")
    raster = open_raster(tmp_path / "x.tif")
    store = transcode(raster, tmp_path / "s", identity="me")
    store.rename(store.with_suffix(".partial"))
    (store.with_suffix(".partial") / "zarr.json").unlink()
    assert transcode(raster, tmp_path / "s", identity="me") == store
    assert {p.suffix for p in (tmp_path / "s").iterdir()} == {".lock", ".zarr"}


def test_a_copy_of_something_else_is_refused(tmp_path: Path) -> None:
    one_strip(tmp_path / "x.tif")
    with_alpha(tmp_path / "y.tif")
    store = transcode(open_raster(tmp_path / "x.tif"), tmp_path / "s", identity="me")
    with pytest.raises(InputError, match="another image"):
        open_transcoded(store, open_raster(tmp_path / "y.tif"))
    with pytest.raises(InputError, match="no copy"):
        open_transcoded(tmp_path / "s", open_raster(tmp_path / "x.tif"))


# ---- what streams


@pytest.mark.parametrize("layout_", [{"rowsperstrip": HEIGHT}, {"rowsperstrip": 120}, {"tile": (160, 144)}])
@pytest.mark.parametrize(
    ("codec", "predictor", "dtype"),
    [
        ("deflate", None, "uint8"), ("deflate", 2, "uint8"), ("deflate", 2, "int16"), ("deflate", 3, "float32"),
        ("zstd", 2, "uint32"), ("zstd", 3, "float64"), ("lzma", None, "float16"), ("lzma", 2, "uint16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_segment_that_may_not_be_kept_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout_: dict[str, Any], codec: str, predictor: int | None,
    dtype: str, byteorder: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(large_segment, "MOST_KEPT_BYTES", 1 << 12)
    monkeypatch.setattr(page, "MOST_KEPT_BYTES", 1 << 12)
    monkeypatch.setattr(page.Page, "_decoded", None)
    pixels = random_pixels(dtype)
    write_tiff(
        tmp_path / "x.tif", pixels, compression=codec, predictor=predictor, byteorder=byteorder, **layout_
    )
    raster = open_raster(tmp_path / "x.tif")
    for y, x, bottom, right in (
        (0, 0, 50, WIDTH),
        (50, 0, 200, WIDTH),
        (210, 30, HEIGHT, 200),
        (3, 250, 170, 257),
    ):
        window = Window.between(y, x, bottom, right)
        np.testing.assert_array_equal(raster.read(window), pixels[window.slices()])


def test_a_broken_segment_is_broken_for_every_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_strip(tmp_path / "x.tif")
    for most_kept in (1 << 30, 1 << 12):
        monkeypatch.setattr(large_segment, "MOST_KEPT_BYTES", most_kept)
        raster = open_raster(tmp_path / "x.tif")
        for y in (0, 100):
            with pytest.raises(ReadError, match="broken"):
                raster.read(Window(y=y, x=0, height=5, width=WIDTH))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is told by /proc alone")
def test_memory_does_not_grow_with_the_strip(tmp_path: Path) -> None:
    """230 MB in one strip, with limits of 2 MB: what is held has nothing to do with the strip."""
    height, width = 7_000, 11_000
    codec, row = zlib.compressobj(1), (np.arange(width * 3) % 251).astype(np.uint8).tobytes()
    packed = b"".join(codec.compress(row * 500) for _ in range(height // 500)) + codec.flush()
    tifffile.imwrite(
        tmp_path / "x.tif", iter([packed]), shape=(height, width, 3), dtype="u1", photometric="rgb",
        rowsperstrip=height, compression="deflate", metadata=None,
    )  # fmt: skip
    code = (
        "import sys, zarr; from pathlib import Path; from raysegment.raster import layout, open_raster\n"
        "from raysegment.raster import transcode as module; transcode = module.transcode\n"
        "layout.HELD_BYTES = module.HELD_BYTES = 1 << 21\n"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) >> 10\n"
        "before = peak()\n"
        "transcode(open_raster(sys.argv[1]), Path(sys.argv[2]), identity='me')\n"
        "print(peak() - before)"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "x.tif"), str(tmp_path / "s")]
    taken_mib = int(subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert taken_mib < 80
