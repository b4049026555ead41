"""PNG, JPEG and the like: small pictures, decoded whole on the first read."""

from __future__ import annotations

import io
import threading
import warnings
from contextlib import closing
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from raysegment.errors import InputError, ReadError, StorageError, UsageError
from raysegment.geometry import Size, Window
from raysegment.raster.beside import Aux, aux_beside, beside_identity, prj_beside, world_file_beside
from raysegment.raster.georeference import pixel_size_of
from raysegment.raster.identity import part_identity, path_identity
from raysegment.raster.validity import representable, valid_pixels
from raysegment.raster.window import check_window
from raysegment.storage import Url, is_url, location
from raysegment.storage.objects import open_bytes
from raysegment.storage.url_file import UrlFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from PIL.Image import Image

    from raysegment.raster.protocol import PixelSize, Raster, Transform

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP")
#: These formats cannot be read in part; above this, decoding one would take more than a worker may hold.
_MOST_PIXELS = 400_000_000
_DTYPES = {"I;16": np.uint16, "I;16B": np.uint16, "I": np.int32, "F": np.float32}
_CHANNELS = {"1": 1, "L": 1, "P": 1, "LA": 2, "PA": 2, "RGB": 3, "YCbCr": 3, "RGBA": 4, "CMYK": 4}
_ALPHA = {"LA": 1, "PA": 1, "RGBA": 3}
#: EXIF's tag.
_ORIENTATION = 0x0112
#: A PNG's colour type, by the IHDR chunk.
_GREY_ALPHA = 4
#: What Pillow multiplies grey of 2 and 4 bits by, to fill a byte.
_STRETCH = {2: 85, 4: 17}


class PictureRaster:
    """A picture as one (y, x, channel) plane; see :class:`raysegment.raster.protocol.Raster`.

    A palette picture is read as the stored index with `.palette` beside it, a 1-bit one as uint8 0 and 1.
    `orientation`: EXIF's, by which viewers turn and mirror the picture, and nothing here does; 1 = as stored.
    `part`: offset and length in bytes of a picture that is only a part of the file at `path`.
    """

    levels: tuple[Size, ...]
    chunks: tuple[Size, ...]
    pixel_size: PixelSize | None = None
    crs: str | None = None
    transform: Transform | None = None
    nodata: float | None = None
    offset: tuple[float, float] = (0.0, 0.0)
    other_images: tuple[tuple[str, Size], ...] = ()

    def __init__(self, path: str, select: Mapping[str, int], part: tuple[int, int] | None = None) -> None:
        self.path = path
        self.select = dict(select)
        self.part = part
        self._pixels: np.ndarray | None = None
        self._lock = threading.Lock()
        if select:
            raise UsageError(f"select {dict(select)} does not fit {path}: a picture has no axes but y and x")
        with self._opened() as image:
            self._describe(image)

    def _opened(self, *, whole: bool = False) -> Image:
        """The header alone; Pillow decodes later, where it will the `whole`."""
        import PIL.Image

        try:
            with warnings.catch_warnings():
                # The size is checked in _describe, with our own limit.
                warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
                encoded = None if self.part is None and not is_url(self.path) else self._encoded(whole=whole)
                return PIL.Image.open(encoded or self.path, formats=_FORMATS)
        except PIL.UnidentifiedImageError as e:
            raise InputError(
                f"{self.path} is no image that can be read (content decides): give TIFF, Zarr, PNG or JPEG; "
                "of what GDAL reads (JPEG 2000, VRT, HDF, NetCDF …) "
                "gdal_translate -co TILED=YES -co COMPRESS=DEFLATE IN OUT.tif makes one"
            ) from e
        except PIL.Image.DecompressionBombError as e:
            raise InputError(_too_large(self.path, str(e))) from e
        except StorageError:
            raise
        except Exception as e:  # a damaged header makes Pillow raise nearly anything
            raise InputError(f"{self.path} is not a readable picture: {e}") from e

    def _describe(self, image: Image) -> None:
        width, height = image.size
        if width * height > _MOST_PIXELS:
            raise InputError(_too_large(self.path, f"{height} × {width} px"))
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise InputError(f"{self.path} holds {image.n_frames} pictures: give one picture per file")  # type: ignore[attr-defined]
        # Pillow halves colours of 16 bits without a word, and stretches grey of 2 and 4 bits.
        depth, colour_type = self._png_header() if image.format == "PNG" else (8, None)
        self._is_deep = depth == 16 and image.mode in ("RGB", "RGBA", "LA")
        self._stretch = _STRETCH.get(depth, 1) if image.mode == "L" else 1
        # Grey and alpha of 16 bits it calls RGBA.
        mode = "LA" if self._is_deep and colour_type == _GREY_ALPHA else image.mode
        if mode not in _CHANNELS and mode not in _DTYPES:
            raise InputError(f"{self.path} has Pillow's mode {mode!r}, which cannot be read: save it as RGB")
        self.format = "JPEG" if image.format == "MPO" else str(image.format)
        self.shape = (height, width, _CHANNELS.get(mode, 1))
        self.dtype = np.dtype(np.uint16 if self._is_deep else _DTYPES.get(mode, np.uint8))
        self.levels = (Size(height, width),)
        self.chunk = Size(height, width)
        self.chunks = (self.chunk,)
        self.alpha = _ALPHA.get(mode)
        self.palette = _palette(image)
        self.orientation = _orientation(image)
        self._transparent = _transparent(image)
        if len(self._transparent) == 1 and len({*self._transparent[0]}) == 1:  # as valid_pixels tells it
            self.nodata = representable(float(self._transparent[0][0]), self.dtype)
            self._transparent = ()
        self._place()

    def _place(self) -> None:
        """Where it lies and, unless it says itself what is transparent, its nodata: by files beside it."""
        aux = aux_beside(self.path) if self.part is None else Aux()
        self.transform = aux.transform or (world_file_beside(self.path) if self.part is None else None)
        if self.transform is not None:
            self.crs = aux.crs() or prj_beside(self.path)
            self.pixel_size = pixel_size_of(self.transform, self.crs)
        told = representable(aux.nodata, self.dtype)
        if told is not None and self.nodata is None and not self._transparent:
            self.nodata = told
        else:
            told = None
        self._beside = beside_identity(self.crs, self.transform, told)

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        """Pixels as stored (height, width, channels). Raises ReadError."""
        check_window(window, self.levels[level], self.path)
        with self._lock:
            if self._pixels is None:
                self._pixels = self._decoded(window)
        rows, columns = window.slices()
        return np.ascontiguousarray(self._pixels[rows, columns])

    def _decoded(self, window: Window) -> np.ndarray:
        try:
            pixels = self._deep_png() if self._is_deep else self._by_pillow()
            return (pixels // self._stretch if self._stretch > 1 else pixels).reshape(self.shape)
        except StorageError:
            raise
        except Exception as e:  # codecs raise anything on damaged data
            raise ReadError(f"{self.path}: cannot read {window}: {e}") from e

    def _by_pillow(self) -> np.ndarray:
        with self._opened(whole=True) as image:
            image.load()
            return np.asarray(image).astype(self.dtype, copy=False)

    def _deep_png(self) -> np.ndarray:
        import imagecodecs

        with self._encoded(whole=True) as f:
            pixels = np.asarray(imagecodecs.png_decode(f.read()))
        return pixels[:, :, : self.shape[2]]  # libpng makes an alpha channel of a transparent colour

    def _png_header(self) -> tuple[int, int | None]:
        """Bits per sample and colour type, by the IHDR chunk."""
        with self._encoded() as f:
            head = f.read(26)
        return (head[24], head[25]) if len(head) == 26 else (8, None)

    def _encoded(self, *, whole: bool = False) -> IO[bytes]:
        """The picture's own bytes; at a URL, only what is read of them is brought, or the `whole` at once."""
        place = location(self.path)
        if self.part is not None:
            with closing(open_bytes(place)) as part:
                return io.BytesIO(part.read(*self.part))
        if not isinstance(place, Url):
            return open(self.path, "rb")
        file = UrlFile(place)
        if whole:
            file.expect([(0, file.size)])
        return cast(IO[bytes], file.stream())

    def valid(self, window: Window, pixels: np.ndarray, level: int = 0) -> np.ndarray | None:
        """Where neither alpha nor the colour says transparent. True = data; None = everywhere."""
        if not self._transparent:
            return valid_pixels(pixels, self.nodata, self.alpha)
        if self.palette is not None:
            return ~np.isin(pixels[:, :, 0], self._transparent)
        return (pixels != self._transparent[0]).any(axis=2)

    def stored(self, level: int = 0) -> None:
        """A picture is stored whole."""

    def identity(self) -> str:
        """Digest of the picture's bytes, and of what is told beside it; see identity.py, beside.py."""
        if self.part is not None:
            return part_identity(self.path, *self.part)
        own = path_identity(self.path)
        return own if self._beside is None else f"{own}-{self._beside}"

    def close(self) -> None:
        """Let go of the decoded pixels."""
        self._pixels = None

    def __reduce__(self) -> tuple[Callable[..., Raster], tuple[str, dict[str, int], tuple[int, int] | None]]:
        return PictureRaster, (self.path, self.select, self.part)


def _orientation(image: Image) -> int:
    if "exif" not in image.info:  # of a PNG, Pillow would decode all of it to look further
        return 1
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged tags make Pillow raise nearly anything, and no pixel depends on them
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _palette(image: Image) -> tuple[tuple[int, int, int], ...] | None:
    if image.mode != "P":
        return None
    flat = image.getpalette("RGB") or []
    return tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3))


def _transparent(image: Image) -> tuple[tuple[int, ...], ...]:
    """Stored values of pixels, channel by channel, that a PNG's tRNS chunk or a GIF makes wholly transparent."""
    value = image.info.get("transparency")
    if isinstance(value, bytes):  # alpha of every colour of the palette
        return tuple((index,) for index, alpha in enumerate(value) if alpha == 0)
    if isinstance(value, tuple):
        return (value,)
    if value is None:
        return ()
    return ((bool(value) if image.mode == "1" else value,),)  # Pillow's white is 255


def _too_large(path: str, seen: str) -> str:
    return (
        f"{path} is too large for a format that has to be decoded whole ({seen}; the limit is "
        f"{_MOST_PIXELS // 10**6} megapixels): convert it to a tiled TIFF, e.g. gdal_translate -co TILED=YES"
    )
