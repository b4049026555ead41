"""What open_raster makes of any path; pictures; identities; axes."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import rasterio
import zarr
from PIL import Image

from raysegment.errors import InputError, ReadError, UsageError
from raysegment.geometry import Window
from raysegment.raster import Raster, identity, open_raster
from raysegment.raster.identity import path_identity


def whole(raster: Raster) -> Window:
    return Window(y=0, x=0, height=raster.shape[0], width=raster.shape[1])


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 9)).save(tmp_path / "a b.png")
    url = (tmp_path / "a b.png").as_uri()
    assert "%20" in url
    assert open_raster(url).path == str(tmp_path / "a b.png")


@pytest.mark.parametrize(
    "content", [b"hello, world\n", b"II*\0", b"MM\0*\0\0\0\x08", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"]
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.tif"):
        open_raster(tmp_path / "x.tif")


def test_other_formats_of_gdal_are_told_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "T32UMV_B04.jp2").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n")
    with pytest.raises(InputError, match=r"B04\.jp2 is no image .* gdal_translate .* OUT\.tif makes one$"):
        open_raster(tmp_path / "T32UMV_B04.jp2")


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_raster(tmp_path / "none.tif")
    (tmp_path / "empty.tif").touch()
    with pytest.raises(InputError, match="0 bytes"):
        open_raster(tmp_path / "empty.tif")
    os.mkfifo(tmp_path / "pipe.tif")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        open_raster(tmp_path / "pipe.tif")


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    pixels = noise(10, 12, 3)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.tif")
    raster = open_raster(tmp_path / "x.tif")
    assert raster.format == "PNG"
    np.testing.assert_array_equal(raster.read(whole(raster)), pixels)


def test_a_raster_is_found_again_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(10, 12)).save(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    raster = open_raster("x.png")
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(raster))
    np.testing.assert_array_equal(again.read(whole(again)), raster.read(whole(raster)))


# ---- pictures


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_png_modes_as_stored(tmp_path: Path, mode: str) -> None:
    image = (
        Image.fromarray(noise(20, 30, dtype="uint16"))
        if mode == "I;16"
        else Image.fromarray(noise(20, 30, 3 if mode == "P" else 4)).convert(mode)
    )
    image.save(tmp_path / "x.png")
    raster = open_raster(tmp_path / "x.png")
    expected = np.asarray(Image.open(tmp_path / "x.png"))
    read = raster.read(whole(raster))
    assert raster.dtype == (np.uint16 if mode == "I;16" else np.uint8)
    np.testing.assert_array_equal(read, expected.reshape(read.shape))
    assert set(np.unique(read)) <= {0, 1} or mode != "1"
    assert raster.alpha == {"LA": 1, "RGBA": 3}.get(mode)
    assert (raster.palette is not None) == (mode == "P")
    if raster.palette is not None:
        colours = np.array(raster.palette)[read[:, :, 0]]
        np.testing.assert_array_equal(colours, np.asarray(image.convert("RGB")))
    valid = raster.valid(whole(raster), read)
    if raster.alpha is None:
        assert valid is None
    else:
        np.testing.assert_array_equal(valid, read[:, :, -1] > 0)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bits_of_several_channels_are_kept(tmp_path: Path, channels: int) -> None:
    pixels = noise(12, 10, channels, dtype="uint16")
    if channels % 2 == 0:
        pixels[3:5, :, -1] = 0
    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(pixels))
    raster = open_raster(tmp_path / "x.png")
    assert raster.shape == pixels.shape
    assert raster.dtype == np.uint16
    assert raster.alpha == {2: 1, 4: 3}.get(channels)
    read = raster.read(whole(raster))
    np.testing.assert_array_equal(read, pixels)
    with _by_rasterio(tmp_path / "x.png") as dataset:
        np.testing.assert_array_equal(read, np.moveaxis(dataset.read(), 0, -1))
        np.testing.assert_array_equal(_known(raster), dataset.dataset_mask() != 0)


@contextmanager
def _by_rasterio(path: Path) -> Iterator[rasterio.DatasetReader]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            yield dataset


def _known(raster: Raster) -> np.ndarray:
    """Where there is data, of the whole picture."""
    valid = raster.valid(whole(raster), raster.read(whole(raster)))
    return np.ones(raster.shape[:2], bool) if valid is None else valid


def _png(pixels: np.ndarray, depth: int, colour_type: int, **chunks: bytes) -> bytes:
    """Big-endian samples (height, width, channels) of `depth` bits, with chunks that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    samples = pixels.astype(">u2" if depth == 16 else "u1").reshape(height, -1)
    bits = np.unpackbits(samples[:, :, None].view(np.uint8), axis=2)[:, :, -depth:].reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress(rows), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name.encode(), data) for name, data in parts.items())


def test_grey_of_few_bits_is_not_stretched(tmp_path: Path) -> None:
    pixels = noise(8, 8, 1) % 16
    (tmp_path / "x.png").write_bytes(_png(pixels, 4, 0))
    raster = open_raster(tmp_path / "x.png")
    np.testing.assert_array_equal(raster.read(whole(raster)), pixels)


_GREY, _RGB, _PALETTE = 0, 2, 3
_PLTE = bytes(range(12))


@pytest.mark.parametrize(
    ("depth", "colour_type", "trns", "nodata"),
    [
        (1, _GREY, struct.pack(">H", 1), 1),
        (4, _GREY, struct.pack(">H", 3), 3),
        (8, _GREY, struct.pack(">H", 0), 0),
        (8, _GREY, struct.pack(">H", 258), None),  # no byte holds it
        (16, _GREY, struct.pack(">H", 2), 2),
        (8, _RGB, struct.pack(">HHH", 1, 1, 1), 1),
        (8, _RGB, struct.pack(">HHH", 0, 1, 0), None),
        (16, _RGB, struct.pack(">HHH", 0, 1, 0), None),
        (2, _PALETTE, b"\xff\xff\x00", 2),
        (8, _PALETTE, b"\x00\x80", 0),
        (8, _PALETTE, b"\xff\x80", None),
    ],
)
def test_transparent_colours_are_rasterios_nodata(
    tmp_path: Path, depth: int, colour_type: int, trns: bytes, nodata: int | None
) -> None:
    channels = 3 if colour_type == _RGB else 1
    pixels = noise(16, 20, channels) % (2 if channels == 3 or depth == 1 else 4)
    chunks = {"PLTE": _PLTE, "tRNS": trns} if colour_type == _PALETTE else {"tRNS": trns}
    (tmp_path / "x.png").write_bytes(_png(pixels, depth, colour_type, **chunks))
    raster = open_raster(tmp_path / "x.png")
    assert raster.nodata == nodata
    with _by_rasterio(tmp_path / "x.png") as dataset:
        np.testing.assert_array_equal(raster.read(whole(raster)), np.moveaxis(dataset.read(), 0, -1))
        np.testing.assert_array_equal(_known(raster), dataset.dataset_mask() != 0)
        is_opaque = trns in (b"\xff\x80", struct.pack(">H", 258))
        assert (_known(raster).all() and dataset.dataset_mask().all()) == is_opaque


def test_several_transparent_colours_of_a_palette_hold_no_data(tmp_path: Path) -> None:
    pixels = noise(16, 20, 1) % 4
    (tmp_path / "x.png").write_bytes(_png(pixels, 8, _PALETTE, PLTE=_PLTE, tRNS=b"\x00\xff\x00\x80"))
    raster = open_raster(tmp_path / "x.png")
    assert raster.nodata is None
    with _by_rasterio(tmp_path / "x.png") as dataset:  # its mask has room for one of them alone
        alpha = np.array([dataset.colormap(1)[index][3] for index in range(4)])
    np.testing.assert_array_equal(_known(raster), alpha[pixels[:, :, 0]] > 0)


def test_jpeg_equals_pillow(tmp_path: Path) -> None:
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "x.jpg")
    raster = open_raster(tmp_path / "x.jpg")
    np.testing.assert_array_equal(raster.read(whole(raster)), np.asarray(Image.open(tmp_path / "x.jpg")))
    with pytest.raises(UsageError, match="no axes but y and x"):
        open_raster(tmp_path / "x.jpg", select={"z": 0})


def test_huge_pictures_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "x.png")
    raw = bytearray((tmp_path / "x.png").read_bytes())
    for edge in (30_000, 2_000_000_000):
        raw[16:24] = edge.to_bytes(4, "big") * 2
        raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
        (tmp_path / "x.png").write_bytes(raw)
        with pytest.raises(InputError, match=r"too large.*400 megapixels"):
            open_raster(tmp_path / "x.png")


def test_a_truncated_picture_opens_and_fails_when_read(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "x.png")
    with (tmp_path / "x.png").open("r+b") as f:
        f.truncate(4000)
    raster = open_raster(tmp_path / "x.png")
    with pytest.raises(ReadError, match=r"x\.png: cannot read y 0–64, x 0–64"):
        raster.read(whole(raster))


def test_animations_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(8, 8, 3) // (k + 1)) for k in range(3)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="holds 3 pictures"):
        open_raster(tmp_path / "x.gif")


# ---- identity


def test_a_copy_has_the_same_identity_and_one_byte_another(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(noise(1000).tobytes())
    (tmp_path / "b").write_bytes(noise(1000).tobytes())
    os.utime(tmp_path / "b", (1, 1))
    assert path_identity(tmp_path / "a") == path_identity(tmp_path / "b")
    with (tmp_path / "b").open("r+b") as f:
        f.seek(500)
        f.write(b"\x01\x02\x03")
    assert path_identity(tmp_path / "a") != path_identity(tmp_path / "b")


def test_a_folder_counts_names_and_content(tmp_path: Path) -> None:
    pixels = noise(32, 32)
    for name in ("a", "b"):
        zarr.create_array(tmp_path / name, shape=pixels.shape, dtype="u1", chunks=(16, 16))[...] = pixels
    before = open_raster(tmp_path / "a").identity()
    assert before == open_raster(tmp_path / "b").identity()
    (tmp_path / "b" / "c" / "1" / "1").rename(tmp_path / "b" / "c" / "1" / "2")
    assert before != path_identity(tmp_path / "b")


def test_large_content_is_sampled_and_dated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(identity, "SAMPLE_BYTES", 16)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(noise(10_000).tobytes())
        os.utime(tmp_path / name, ns=(1_000, 1_000))
    assert path_identity(tmp_path / "a") == path_identity(tmp_path / "b")
    os.utime(tmp_path / "b", ns=(2_000, 2_000))
    assert path_identity(tmp_path / "a") != path_identity(tmp_path / "b")
    for place in (0, 9_999):  # the first and the last byte are always among the samples
        content = bytearray(noise(10_000).tobytes())
        content[place] ^= 1
        (tmp_path / "b").write_bytes(content)
        os.utime(tmp_path / "b", ns=(1_000, 1_000))
        assert path_identity(tmp_path / "a") != path_identity(tmp_path / "b")


def test_every_reader_keeps_the_protocol(tmp_path: Path) -> None:
    import tifffile

    Image.fromarray(noise(8, 8)).save(tmp_path / "x.png")
    tifffile.imwrite(tmp_path / "x.tif", noise(8, 8))
    zarr.create_array(tmp_path / "x.zarr", shape=(8, 8), dtype="u1")
    for name in ("x.png", "x.tif", "x.zarr"):
        raster = open_raster(tmp_path / name)
        assert isinstance(raster, Raster)
        assert raster.path == str(tmp_path / name)
        raster.close()
        raster.close()
