"""Zarr v2 and v3 arrays and groups, OME-Zarr 0.1 to 0.5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raysegment.errors import InputError, RaysegmentError, ReadError, StorageError
from raysegment.geometry import Size, Window
from raysegment.raster.axes import guess_names, resolve, short_name
from raysegment.raster.beside import beside_identity
from raysegment.raster.georeference import pixel_size_of
from raysegment.raster.identity import content_identity, path_identity
from raysegment.raster.segment_cache import DECODED
from raysegment.raster.stored import Stored
from raysegment.raster.validity import representable, valid_pixels
from raysegment.raster.window import check_window
from raysegment.raster.zarr_chunks import stored_chunks
from raysegment.raster.zarr_metadata import (
    dimension_names,
    names_by_parent,
    nodata,
    ome_axes,
    ome_offset,
    ome_pixel_size,
    spatial_transform,
)
from raysegment.raster.zarr_place import parent_group, place_by_group
from raysegment.storage import Location, Url, location
from raysegment.storage.objects import asked, zarr_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import zarr

    from raysegment.raster.protocol import PixelSize, Raster, Transform
    from raysegment.raster.segment_cache import Key

_METADATA = ("zarr.json", ".zarray", ".zgroup")


def has_metadata(place: Location) -> bool:
    """Whether there is a Zarr array or group. Raises StorageError."""
    return any((place / name).is_file() for name in _METADATA)


class ZarrRaster:
    """A Zarr array, or the levels of an OME-Zarr image, as one (y, x, channel) plane.

    See :class:`raysegment.raster.protocol.Raster`. Several threads may read it at once; pickled, it travels
    as its path.
    """

    palette: tuple[tuple[int, int, int], ...] | None = None
    alpha: int | None = None
    pixel_size: PixelSize | None = None
    crs: str | None = None
    transform: Transform | None = None
    offset: tuple[float, float] = (0.0, 0.0)
    other_images: tuple[tuple[str, Size], ...] = ()
    _beside: str | None = None
    axes_are_named = True
    """Whether the source says what its axes are; else it was told by their lengths, and by `select`."""

    def __init__(self, path: str, select: Mapping[str, int]) -> None:
        import zarr

        self.path = path
        self.select = dict(select)
        self._stored: dict[int, Stored | None] = {}
        self._place = location(path)
        if not has_metadata(self._place):
            raise InputError(
                f"{path} is a folder without Zarr metadata: give an image or a Zarr array or group"
            )
        try:
            node = asked(self._place, lambda: zarr.open(zarr_store(self._place, read_only=True), mode="r"))
            if isinstance(node, zarr.Array):
                asked(self._place, lambda: self._open_array(node))
            else:
                asked(self._place, lambda: self._open_group(node))
        except RaysegmentError:
            raise
        except Exception as e:  # damaged metadata makes zarr raise nearly anything
            raise InputError(f"{path} is not a readable Zarr: {type(e).__name__}: {e}") from e

    def _open_array(self, array: zarr.Array, group: zarr.Group | None = None) -> None:
        """`group`: what was opened, where it is not the array itself."""
        names = dimension_names(array) or names_by_parent(self._place)
        self.axes_are_named = names is not None
        names = names or guess_names(array.shape, self.path, self.select)
        self.format = f"Zarr v{array.metadata.zarr_format}"
        self._describe([array], [names], dict(array.attrs), {})
        around = group if group is not None else parent_group(self._place) if self.axes_are_named else None
        if self.transform is None and around is not None:
            crs, self.transform = place_by_group(array, names, self._axes[0], around, self.path)
            self.crs = self.crs or crs
            if self.transform is not None:
                self.pixel_size = pixel_size_of(self.transform, self.crs)
            self._beside = beside_identity(crs, self.transform, None) if group is None else None

    def _open_group(self, group: zarr.Group) -> None:
        import zarr

        attributes: dict[str, Any] = dict(group.attrs)
        ome = attributes.get("ome", attributes)
        if isinstance(ome.get("multiscales"), list):  # GeoZarr's is no list
            self._open_multiscales(group, ome, attributes)
            return
        if ome.get("bioformats2raw.layout") is not None:
            children = sorted(name for name, _ in group.groups() if name != "OME")  # which holds the XML
        elif "labels" in ome:
            children = sorted(name for name, _ in group.groups())
        else:
            # What has one axis or none are coordinates and grid mappings of CF.
            children = sorted(name for name, array in group.arrays() if array.ndim >= 2) or sorted(
                name for name, _ in group.groups()
            )
        if len(children) != 1:
            found = ", ".join(children[:8]) + (", …" if len(children) > 8 else "") or "nothing"
            raise InputError(
                f"{self.path} is a Zarr group that holds {found}: give the path of one image in it"
            )
        child = group[children[0]]
        if isinstance(child, zarr.Array):
            self._open_array(child, group)
        else:
            self._open_group(child)

    def _open_multiscales(
        self, group: zarr.Group, ome: Mapping[str, Any], attributes: Mapping[str, Any]
    ) -> None:
        scales = ome["multiscales"][0]
        names, units = ome_axes(scales)
        arrays = [group[d["path"]] for d in scales["datasets"]]
        version = str(ome.get("version") or scales.get("version") or "0.1")
        self.format = f"OME-Zarr {version}"
        self._describe(arrays, [names] * len(arrays), {**dict(arrays[0].attrs), **attributes}, units)
        if self.pixel_size is None:
            self.pixel_size = ome_pixel_size(scales, self._axes[0], units)
        self.offset = ome_offset(scales, self._axes[0])

    def _describe(
        self,
        arrays: list[Any],
        names: list[tuple[str, ...]],
        attributes: Mapping[str, Any],
        units: Mapping[str, str | None],
    ) -> None:
        self._arrays = arrays
        first = arrays[0]
        if first.dtype.kind not in "buif":
            raise InputError(f"{self.path} has {first.dtype} pixels: give real numbers")
        if 0 in first.shape:
            raise InputError(f"{self.path} has the shape {first.shape}: there is nothing to read")
        for array, axis_names in zip(arrays, names, strict=True):
            if len(array.shape) != len(axis_names):
                raise InputError(
                    f"{self.path} names {len(axis_names)} axes {axis_names}, but has shape {array.shape}"
                )
        self._axes = [resolve(n, a.shape, self.select, self.path) for n, a in zip(names, arrays, strict=True)]
        axes = self._axes[0]
        self.axes = dict(zip(map(short_name, names[0]), first.shape, strict=True))
        """Name and length of every axis, as stored."""
        self.levels = tuple(Size(a.shape[x.y], a.shape[x.x]) for a, x in zip(arrays, self._axes, strict=True))
        channels = 1 if axes.channel is None else first.shape[axes.channel]
        self.shape = (*self.levels[0], channels)
        self.dtype = np.dtype(np.uint8) if first.dtype.kind == "b" else first.dtype.newbyteorder("=")
        self.chunks = tuple(
            Size(*(min(a.chunks[i], a.shape[i]) for i in (x.y, x.x)))
            for a, x in zip(arrays, self._axes, strict=True)
        )
        self.chunk = self.chunks[0]
        self.crs = attributes.get("proj:code") or attributes.get("proj:wkt2")
        self.transform = spatial_transform(attributes)
        self.nodata = representable(nodata(attributes, first.metadata), self.dtype)
        if self.transform is not None:
            known = {"meter": (1.0, False), "degree": (None, True)}  # nobody else need be asked then
            metres, geographic = known.get(units.get("y") or "", (None, None))
            self.pixel_size = pixel_size_of(
                self.transform, self.crs, unit_metres=metres, geographic=geographic
            )

    def read(self, window: Window, level: int = 0) -> np.ndarray:
        """Pixels as stored (height, width, channels); missing chunks are the fill value. Raises ReadError."""
        check_window(window, self.levels[level], self.path)
        try:
            return asked(self._place, lambda: self._joined(window, level))
        except StorageError:  # says nothing of the chunks
            raise
        except Exception as e:  # codecs raise anything on damaged data
            raise ReadError(
                f"{self.path}: cannot read {window} of level {level}: {type(e).__name__}: {e}"
            ) from e

    def _joined(self, window: Window, level: int) -> np.ndarray:
        """The window, with what the one to its left kept for it: its first column of chunks, if the rows are the same.

        zarr decodes whole chunks and forgets what was not asked for, and one call for all of them is faster than
        one for each. So the call asks for all of the last column, which touches no further chunk.
        """
        width = self.chunks[level].width
        first, last = self._columns(window, level)
        kept = DECODED.take(self._key(first, level))
        # A window of less than two columns would pay for one about as large as itself.
        keeps = window.right < last.right and window.width >= 2 * width
        if kept is None and not keeps:
            return self._fetched(window, level)
        out = np.empty((window.height, window.width, self.shape[2]), self.dtype)
        begin = window.x
        if kept is not None:
            begin = min(first.right, window.right)
            out[:, : begin - window.x] = kept[:, window.x - first.x : begin - first.x]
        if begin < window.right:
            end = last.right if keeps else window.right
            fresh = self._fetched(Window.between(window.y, begin, window.bottom, end), level)
            out[:, begin - window.x :] = fresh[:, : window.right - begin]
            if keeps:
                DECODED.keep(self._key(last, level), fresh[:, last.x - begin :].copy(), last, window)
        return out

    def _columns(self, window: Window, level: int) -> tuple[Window, Window]:
        """The rows of the window in the first and in the last column of chunks that it touches."""
        width, right = self.chunks[level].width, self.levels[level].width
        lefts = (x // width * width for x in (window.x, window.right - 1))
        first, last = (Window.between(window.y, x, window.bottom, min(x + width, right)) for x in lefts)
        return first, last

    def _key(self, column: Window, level: int) -> Key:
        """Under which rows of a column of chunks are kept."""
        return self, (level, column.y, column.bottom, column.x)

    def _fetched(self, window: Window, level: int) -> np.ndarray:
        """The window by one call to zarr."""
        axes = self._axes[level]
        pixels = np.asarray(self._arrays[level][axes.index(*window.slices())])
        plane = pixels.transpose(axes.kept_order())
        return np.ascontiguousarray(plane.reshape(window.height, window.width, -1), dtype=self.dtype)

    def valid(self, window: Window, pixels: np.ndarray, level: int = 0) -> np.ndarray | None:
        """Where there is data, by nodata and NaN. True = data; None = everywhere."""
        return valid_pixels(pixels, self.nodata, self.alpha)

    def stored(self, level: int = 0) -> Stored | None:
        """The chunks that are in the store, by its folders' listings and the shards' indexes; None = every one."""
        if level not in self._stored:
            array = self._arrays[level]
            self._stored[level] = stored_chunks(array, self._axes[level], self._folder(array))
        return self._stored[level]

    def identity(self) -> str:
        """Digest of every file of the store; see :mod:`raysegment.raster.identity`.

        A web server does not list them: there it is of the metadata alone.
        """
        if not isinstance(self._place, Url) or self._place.is_writable:
            own = path_identity(self.path)
            return own if self._beside is None else f"{own}-{self._beside}"
        folders = [self._place, *(self._folder(array) for array in self._arrays)]
        files = [folder / name for folder in folders for name in (*_METADATA, ".zattrs")]
        return content_identity(file.read_bytes() for file in files if file.is_file())

    def _folder(self, array: zarr.Array) -> Location:
        return self._place / array.path if array.path else self._place

    def close(self) -> None:
        """Nothing is held open; what is kept decoded goes."""
        DECODED.forget(self)

    def __reduce__(self) -> tuple[Callable[..., Raster], tuple[str, dict[str, int]]]:
        return ZarrRaster, (self.path, self.select)
