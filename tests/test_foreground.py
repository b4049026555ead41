"""Which pixels are worth the network: grids against brute force, masks exact, glass on made and real slides."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raysegment.errors import InputError
from raysegment.geometry import Size, Window, mirror
from raysegment.inference import foreground
from raysegment.inference.foreground import Foreground, Layer, find_foreground
from raysegment.raster import open_raster
from raysegment.raster.glass import MARGIN_CELLS, MARGIN_UM, tissue_grid

HEIGHT, WIDTH = 150, 131


def everything(size: Size) -> Window:
    return Window(y=0, x=0, height=size.height, width=size.width)


def whole(found: Foreground) -> np.ndarray:
    pixels = found.pixels(everything(found.size))
    return np.ones(found.size, bool) if pixels is None else pixels


def check_windows(found: Foreground) -> None:
    """Windows are crops of the whole, and `any` never denies a pixel, mirrored ones included."""
    truth, (height, width) = whole(found), found.size

    @given(st.data())
    def crops(data: st.DataObject) -> None:
        y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        bottom, right = data.draw(st.integers(y + 1, height)), data.draw(st.integers(x + 1, width))
        window = Window.between(y, x, bottom, right)
        pixels = found.pixels(window)
        crop = truth[window.slices()]
        assert (pixels is None) == crop.all()
        if pixels is not None:
            np.testing.assert_array_equal(pixels, crop)
        assert found.any(window) or not crop.any()

    @given(st.integers(-60, height), st.integers(-60, width), st.integers(1, 90), st.integers(1, 90))
    def sticks_out(y: int, x: int, h: int, w: int) -> None:
        window = Window(y=y, x=x, height=h, width=w)
        hull, index = mirror(window, found.size)
        seen = truth[hull.slices()]
        seen = seen if index is None else seen[index]
        assert found.any(window) or not seen.any()

    crops()
    sticks_out()


# ── grids ───────────────────────────────────────────────────────────────────────


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 9), st.integers(0, 8), st.integers(1, 200),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_a_pixel_belongs_to_the_cell_under_its_centre(
    rows: int, columns: int, edge: int, cut: int, height: int, seed: int
) -> None:
    grid = np.random.default_rng(seed).random((rows, columns)) < 0.3
    length = Size(rows * edge - min(cut, edge - 1), columns * edge)
    layer, size = Layer(grid, length, Size(edge, edge)), Size(height, 37)
    seen = layer.pixels(everything(size), size)
    for y in {0, height // 2, height - 1}:
        for x in (0, 11, 36):
            row = int((y + 0.5) / height * length.height + 1e-9) // edge
            column = int((x + 0.5) / 37 * length.width + 1e-9) // edge
            assert seen[y, x] == grid[row, column]
    for window in (everything(size), Window(y=height // 2, x=9, height=1, width=20)):
        assert layer.any(window, size) == seen[window.slices()].any()


def sparse(path: Path, marked: np.ndarray) -> Path:
    """A sparse TIFF of 32 px tiles with ones where `marked`."""
    with rasterio.open(
        path, "w", "GTiff", marked.shape[1], marked.shape[0], 1, dtype="uint8", tiled=True, blockxsize=32,
        blockysize=32, sparse_ok=True, compress="deflate", transform=rasterio.Affine.scale(2, -2),
    ) as file:  # fmt: skip
        file.write(marked.astype(np.uint8), 1)
    return path


@pytest.mark.parametrize("size", [Size(HEIGHT, WIDTH), Size(61, 53), Size(301, 262)], ids=str)
def test_auto_leaves_out_what_is_not_stored(tmp_path: Path, size: Size) -> None:
    marked = np.zeros((HEIGHT, WIDTH), bool)
    marked[40, 40] = marked[149, 130] = True
    found = find_foreground(open_raster(sparse(tmp_path / "a.tif", marked)), "auto", size)
    assert found is not None
    truth = np.zeros((HEIGHT, WIDTH), bool)
    truth[32:64, 32:64] = truth[128:, 128:] = True
    ys = ((np.arange(size.height) + 0.5) * HEIGHT / size.height).astype(int)
    xs = ((np.arange(size.width) + 0.5) * WIDTH / size.width).astype(int)
    np.testing.assert_array_equal(whole(found), truth[ys][:, xs])
    assert found.share == pytest.approx(truth[ys][:, xs].mean())
    assert not found.any(Window(y=0, x=0, height=size.height // 6, width=size.width))
    check_windows(found)


def test_all_is_all_and_so_is_auto_where_nothing_is_missing(tmp_path: Path) -> None:
    raster = open_raster(sparse(tmp_path / "a.tif", np.eye(100, dtype=bool)))
    full = open_raster(sparse(tmp_path / "b.tif", np.ones((100, 100), bool)))
    assert find_foreground(raster, "all", Size(100, 100)) is None
    assert find_foreground(raster, "auto", Size(100, 100)) is not None
    assert find_foreground(full, "auto", Size(100, 100)) is None


def test_a_missing_zarr_chunk_is_background(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(64, 64), chunks=(16, 16), dtype="u1", fill_value=9)
    array[16:32, 48:] = 1
    found = find_foreground(open_raster(tmp_path / "a.zarr"), "auto", Size(64, 64))
    assert found is not None
    assert np.argwhere(whole(found)).min(axis=0).tolist() == [16, 48]
    assert whole(found).sum() == 256
    assert found.share == 1 / 16


# ── masks ───────────────────────────────────────────────────────────────────────


def blobs(height: int, width: int) -> np.ndarray:
    y, x = np.ogrid[:height, :width]
    return (np.sin(y / height * 9) * np.cos(x / width * 7) > 0.6) & (x > width // 5)


def image(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    tifffile.imwrite(path, np.full((height, width), 5, np.uint8), metadata=None)
    return path


MASKS: dict[str, Any] = {
    "png 0/255": lambda p, m: Image.fromarray((m * 255).astype(np.uint8)).save(p / "m.png"),
    "rgb": lambda p, m: Image.fromarray((m[:, :, None] * [0, 0, 9]).astype(np.uint8)).save(p / "m.png"),
    "opaque grey": lambda p, m: Image.fromarray(
        np.dstack([m * 3, np.full(m.shape, 255)]).astype(np.uint8), "LA"
    ).save(p / "m.png"),
    "bits": lambda p, m: Image.fromarray(m).save(p / "m.png"),
    "float nan": lambda p, m: tifffile.imwrite(
        p / "m.tif", np.where(m, 1, np.nan).astype(np.float32), metadata=None
    ),
    "nodata": lambda p, m: tifffile.imwrite(
        p / "m.tif", np.where(m, 1, 255).astype(np.uint8), tile=(32, 32), metadata=None,
        extratags=[(42113, "s", 0, "255", True)],
    ),
    "zarr": lambda p, m: zarr.create_array(p / "m.zarr", data=m, chunks=(32, 32)),
}  # fmt: skip


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_mask_is_exact_at_its_own_resolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, large: bool
) -> None:
    marked = blobs(HEIGHT, WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Pillow's `mode`
        MASKS[kind](tmp_path, marked)
    if large:
        monkeypatch.setattr(foreground, "MOST_CELLS", 500)
        monkeypatch.setattr(foreground, "_BAND_PIXELS", 1000)
    path = next(tmp_path.glob("m.*"))
    found = find_foreground(open_raster(image(tmp_path / "i.tif")), path, Size(HEIGHT, WIDTH))
    assert found is not None
    assert (found.mask == str(path)) == large
    np.testing.assert_array_equal(whole(found), marked)
    assert found.share == marked.mean()
    assert found.layers[0].grid.size <= (500 if large else HEIGHT * WIDTH)
    assert not found.any(Window(y=0, x=0, height=HEIGHT, width=20))
    check_windows(found)


@pytest.mark.parametrize(("height", "width"), [(75, 65), (450, 393), (151, 131), (15, 13)])
@pytest.mark.parametrize("size", [Size(HEIGHT, WIDTH), Size(70, 61), Size(311, 272)], ids=str)
def test_a_large_mask_answers_like_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, height: int, width: int, size: Size
) -> None:
    marked = blobs(height, width)
    tifffile.imwrite(tmp_path / "m.tif", marked, tile=(32, 48), compression="deflate", metadata=None)
    raster = open_raster(image(tmp_path / "i.tif"))
    small = find_foreground(raster, tmp_path / "m.tif", size)
    assert small is not None
    assert small.mask is None
    monkeypatch.setattr(foreground, "MOST_CELLS", 100)
    monkeypatch.setattr(foreground, "_BAND_PIXELS", 777)
    large = find_foreground(raster, tmp_path / "m.tif", size)
    assert large is not None
    assert large.mask is not None
    ys = ((np.arange(size.height) * 2 + 1) * height // (2 * size.height)).astype(int)
    xs = ((np.arange(size.width) * 2 + 1) * width // (2 * size.width)).astype(int)
    np.testing.assert_array_equal(whole(small), marked[ys][:, xs])
    np.testing.assert_array_equal(whole(large), whole(small))
    assert large.share == small.share
    check_windows(large)


def test_a_mask_without_background_is_all(tmp_path: Path) -> None:
    Image.fromarray(np.full((75, 65), 7, np.uint8)).save(tmp_path / "m.png")
    raster = open_raster(image(tmp_path / "i.tif"))
    assert find_foreground(raster, tmp_path / "m.png", Size(HEIGHT, WIDTH)) is None


def test_a_mask_of_something_else_is_refused(tmp_path: Path) -> None:
    raster = open_raster(image(tmp_path / "i.tif", 300, 400))
    Image.fromarray(np.zeros((150, 210), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(
        InputError, match=r"m\.png \(150 × 210 px\) has other proportions.*i\.tif \(300 × 400"
    ):
        find_foreground(raster, tmp_path / "m.png", Size(300, 400))
    with pytest.raises(InputError, match="does not exist"):
        find_foreground(raster, tmp_path / "none.png", Size(300, 400))
    tifffile.imwrite(
        tmp_path / "stack.tif",
        np.zeros((4, 300, 400), np.uint8),
        photometric="minisblack",
        metadata={"axes": "ZYX"},
    )
    with pytest.raises(InputError, match="not one plane"):
        find_foreground(raster, tmp_path / "stack.tif", Size(300, 400))


def test_a_mask_of_another_place_is_refused(tmp_path: Path) -> None:
    def scene(name: str, edge: int, pixel: float, left: float) -> Path:
        with rasterio.open(
            tmp_path / name, "w", "GTiff", edge, edge, 1, dtype="uint8", crs="EPSG:32643",
            transform=rasterio.Affine(pixel, 0, left, 0, -pixel, 0),
        ) as file:  # fmt: skip
            file.write(np.eye(edge, dtype=np.uint8), 1)
        return tmp_path / name

    raster = open_raster(scene("i.tif", 200, 10.0, 5000.0))
    assert find_foreground(raster, scene("m.tif", 50, 40.0, 5010.0), Size(200, 200)) is not None
    with pytest.raises(InputError, match="lies elsewhere"):
        find_foreground(raster, scene("far.tif", 50, 40.0, 7000.0), Size(200, 200))
    with pytest.raises(InputError, match="lies elsewhere"):
        find_foreground(raster, scene("fine.tif", 50, 10.0, 5000.0), Size(200, 200))


@pytest.mark.parametrize("large", [False, True])
def test_it_travels_as_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        monkeypatch.setattr(foreground, "MOST_CELLS", 500)
    raster, size = open_raster(image(tmp_path / "i.tif")), Size(HEIGHT, WIDTH)
    for name in ("m.png", "copy.png"):
        Image.fromarray(blobs(HEIGHT, WIDTH)).save(tmp_path / name)
    other = blobs(HEIGHT, WIDTH)
    other[100, 100] ^= True
    Image.fromarray(other).save(tmp_path / "other.png")
    found = find_foreground(raster, tmp_path / "m.png", size)
    assert found is not None
    truth = whole(found)
    for again in (Foreground.from_bytes(found.to_bytes()), pickle.loads(pickle.dumps(found))):
        assert (again.size, again.share, again.digest) == (found.size, found.share, found.digest)
        np.testing.assert_array_equal(whole(again), truth)
    copy, changed = (find_foreground(raster, tmp_path / f"{n}.png", size) for n in ("copy", "other"))
    assert copy is not None
    assert changed is not None
    assert copy.digest == found.digest
    assert changed.digest != found.digest


# ── glass ───────────────────────────────────────────────────────────────────────


def slide(height: int = 600, width: int = 800, white: tuple[int, int, int] = (243, 241, 240)) -> np.ndarray:
    """Stained tissue with a pale rim on glass; float (height, width, 4), the last: how much of a stain there is."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    far = np.hypot((y - height * 0.45) / (height * 0.3), (x - width * 0.4) / (width * 0.22))
    stain = np.clip((1.1 - far) * 4, 0, 1) * (0.75 + 0.25 * np.sin(y / 7) * np.sin(x / 5))
    light = np.exp(-stain[:, :, None] * np.array([0.35, 0.9, 0.45]))
    noisy = np.clip(light * np.array(white) + rng.normal(0, 2, (height, width, 3)), 0, 255)
    return np.dstack([noisy, stain])


def write_slide(
    path: Path, pixels: np.ndarray, *, um: float = 2.0, svs: bool = True, levels: int = 1
) -> Path:
    """A tiled TIFF with its pixel size; `svs`: by Aperio's description."""
    with tifffile.TiffWriter(path) as tif:
        for level in range(levels):
            small = np.ascontiguousarray(pixels[:: 4**level, :: 4**level].astype(np.uint8))
            tif.write(
                small, tile=(64, 64), compression="deflate", photometric="rgb", metadata=None,
                subfiletype=min(level, 1),
                description=f"Aperio Image Library v1|MPP = {um}" if svs else None,
                resolution=(1e4 / um, 1e4 / um), resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


@pytest.mark.parametrize("svs", [True, False], ids=["slide format", "by its looks"])
@pytest.mark.parametrize("white", [(243, 241, 240), (226, 220, 205), (255, 255, 255)])
def test_glass_is_left_out_and_no_tissue(tmp_path: Path, white: tuple[int, int, int], svs: bool) -> None:
    made = slide(white=white)
    raster = open_raster(write_slide(tmp_path / "a.tif", made[:, :, :3], svs=svs))
    assert raster.format.endswith("slide") == svs
    found = find_foreground(raster, "auto", Size(600, 800))
    assert found is not None
    seen, stain = whole(found), made[:, :, 3]
    assert seen[stain > 0.05].all()
    margin = int(max(MARGIN_UM / 2.0, MARGIN_CELLS * 4))
    ys, xs = np.nonzero(stain > 0.1)
    for y, x in zip(ys[::997], xs[::997], strict=True):
        assert seen[max(0, y - margin + 4) : y + margin - 4, max(0, x - margin + 4) : x + margin - 4].all()
    assert not seen[-40:].any()
    assert not seen[:, -200:].any()
    assert found.share == pytest.approx(seen.mean(), abs=0.01)
    assert found.share < 0.45
    check_windows(found)


def test_glass_is_looked_for_on_a_low_level(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", slide()[:, :, :3], svs=False, levels=2)
    raster = open_raster(path)
    assert len(raster.levels) == 2
    before = tissue_grid(raster)
    with tifffile.TiffFile(path) as tif:
        pages = [(p.dataoffsets, p.databytecounts) for p in tif.pages]

    def spoil(page: int) -> None:
        with path.open("r+b") as f:
            for offset, count in zip(*pages[page], strict=True):
                f.seek(offset)
                f.write(b"\xff" * count)

    spoil(0)
    np.testing.assert_array_equal(tissue_grid(open_raster(path)), before)
    assert before is not None
    spoil(1)
    assert tissue_grid(open_raster(path)) is None


def test_specks_go_and_small_holes_are_filled(tmp_path: Path) -> None:
    made = slide()[:, :, :3]
    made[561, 741] = 0  # dust: one pixel of sixteen in a cell
    made[264:276, 316:328] = (243, 241, 240)  # a hole of three cells in the middle of tissue
    grid = tissue_grid(open_raster(write_slide(tmp_path / "a.svs", made)))
    assert grid is not None
    cell = 600 / grid.shape[0]
    assert not grid[int(561 / cell), int(741 / cell)]
    assert grid[int(270 / cell), int(322 / cell)]


def _fluorescence() -> np.ndarray:
    light = 255 - slide()[:, :, :3]
    return light * np.array([1.0, 0.2, 1.5]).clip(0, 1)


def _electrons() -> np.ndarray:
    """Grey saved as RGB, much of it bright."""
    y, x = np.mgrid[:600, :800]
    grey = 205 + 45 * np.tanh(3 * np.sin(y / 60) * np.sin(x / 80))
    return np.repeat(grey[:, :, None], 3, axis=2)


def _all_tissue() -> np.ndarray:
    return slide(1500, 2000)[600:800, 700:950, :3]


NO_GLASS: dict[str, Any] = {
    "fluorescence": (_fluorescence, {}),
    "fluorescence, no slide format": (_fluorescence, {"svs": False}),
    "grey electrons": (_electrons, {"svs": False}),
    "all tissue": (_all_tissue, {}),
    "nothing but glass": (lambda: np.full((300, 400, 3), 243.0), {}),
    "one channel": (lambda: slide()[:, :, 0], {}),
    "a photograph at 72 dpi": (lambda: slide()[:, :, :3], {"um": 353.0, "svs": False}),
}


@pytest.mark.parametrize("name", NO_GLASS)
def test_what_is_no_slide_has_no_glass(tmp_path: Path, name: str) -> None:
    make, options = NO_GLASS[name]
    pixels = make()
    path = tmp_path / "a.tif"
    if pixels.ndim == 2:
        tifffile.imwrite(path, pixels.astype(np.uint8), resolution=(5e3, 5e3), resolutionunit="CENTIMETER")
    else:
        write_slide(path, pixels, **options)
    raster = open_raster(path)
    assert tissue_grid(raster) is None
    assert find_foreground(raster, "auto", Size(*raster.shape[:2])) is None


def test_a_place_on_earth_is_no_slide(tmp_path: Path) -> None:
    snow = slide()[:, :, :3].astype(np.uint8)
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", "GTiff", 800, 600, 3, dtype="uint8", crs="EPSG:32643", transform=rasterio.Affine.scale(10, -10)
    ) as file:  # fmt: skip
        file.write(snow.transpose(2, 0, 1))
    assert find_foreground(open_raster(path), "auto", Size(600, 800)) is None


# ── real files ──────────────────────────────────────────────────────────────────


def test_a_real_slide(shared_data: Path) -> None:
    raster = open_raster(shared_data / "whole_slide" / "cmu-1-small-region.svs")
    size = Size(*raster.shape[:2])
    found = find_foreground(raster, "auto", size)
    assert found is not None
    assert 0.45 < found.share < 0.65
    pixels = raster.read(everything(size)).astype(float)
    seen = whole(found)
    stained = (pixels.max(axis=2) - pixels.min(axis=2) > 60) & (pixels.min(axis=2) < 180)
    assert (stained & ~seen).sum() < 1e-4 * stained.sum()
    assert not found.any(Window(y=2000, x=0, height=500, width=400))  # bare glass


def test_real_scenes_and_micrographs_are_all_foreground(shared_data: Path) -> None:
    folders = ("s2_india_landcover/images", "epfl_roads/images", "isbi2012/images", "dsb2018/images")
    paths = [p for name in folders for p in sorted((shared_data / name).iterdir())[:10]]
    paths += sorted((shared_data / "solaris_spacenet").glob("*.tif"))
    paths += sorted((shared_data / "sen1floods11_sample").rglob("*.tif"))
    paths += sorted((shared_data / "whole_slide").glob("*.ome.tif*"))
    assert len(paths) > 40
    for path in paths:
        raster = open_raster(path)
        assert find_foreground(raster, "auto", Size(*raster.shape[:2])) is None, path
