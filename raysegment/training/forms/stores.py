"""Zarr: a group with the arrays ``image`` and ``mask``, or an OME-Zarr image with ``labels/NAME``.

One store is one scene, or one for every plane of its further axes (z, t, or the samples of a stack). A folder of
such stores is a training set as well, and so is one label image, ``IMAGE.zarr/labels/NAME``, where there are several.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from raysegment.errors import InputError, RaysegmentError
from raysegment.raster.zarr import has_metadata
from raysegment.raster.zarr_metadata import planes
from raysegment.storage import Location
from raysegment.storage.objects import asked, children, zarr_store
from raysegment.training.forms.scene import File, Listing, Pair


def recognises(place: Location) -> bool:
    if has_metadata(place):
        return _parts(place) is not None
    return place.is_dir() and any(_parts(store) is not None for store in _stores(place))


def listing(place: Location) -> Listing:
    if has_metadata(place):
        return _of_store(place, place.name)
    found = [_of_store(store, store.name) for store in _stores(place)]
    pairs, problems = (
        tuple(itertools.chain(*parts)) for parts in zip(*((f.pairs, f.problems) for f in found), strict=True)
    )
    return Listing(pairs, problems)


def _stores(folder: Location) -> list[Location]:
    named = [folder / name for name, is_folder in children(folder).items() if is_folder]
    return [path for path in named if path.suffix == ".zarr" and has_metadata(path)]


def _parts(store: Location) -> tuple[Location, tuple[Location, ...]] | None:
    """The image, and the masks to choose from; None when this is no training set."""
    if has_metadata(store / "image") and has_metadata(store / "mask"):
        return store / "image", (store / "mask",)
    if store.parent.name == "labels" and _is_image(store.parent.parent):
        return store.parent.parent, (store,)
    if not _is_image(store) or not has_metadata(store / "labels"):
        return None
    labels = _attributes(store / "labels").get("labels") or ()
    return (store, tuple(store / "labels" / name for name in labels)) if labels else None


def _is_image(store: Location) -> bool:
    return has_metadata(store) and "multiscales" in _attributes(store)


def _attributes(store: Location) -> Mapping[str, Any]:
    """Those of OME-Zarr. Raises InputError when the metadata is damaged."""
    import zarr

    try:
        attributes: dict[str, Any] = asked(
            store, lambda: dict(zarr.open(zarr_store(store, read_only=True), mode="r").attrs)
        )
    except RaysegmentError:
        raise
    except Exception as e:  # damaged metadata makes zarr raise nearly anything
        raise InputError(f"{store} is not a readable Zarr: {type(e).__name__}: {e}") from e
    return attributes.get("ome", attributes)


def _of_store(store: Location, name: str) -> Listing:
    found = _parts(store)
    if found is None:
        problem = f"{name} holds neither the arrays image and mask nor labels/"
        return Listing((Pair(name, File.at(store), None),), (problem,))
    image, masks = found
    if len(masks) > 1:
        names = ", ".join(mask.name for mask in masks)
        problem = f"{name} has several labels ({names}): name one, e.g. {store / 'labels' / masks[0].name}"
        return Listing((Pair(name, File.at(image), None),), (problem,))
    try:
        seen, drawn = (_planes(path) for path in (image, masks[0]))
    except RaysegmentError as e:
        return Listing((Pair(name, None, None),), (str(e),))
    if any(seen.get(axis) != size for axis, size in drawn.items()):
        problem = f"{name}: the mask has the axes {_sizes(drawn)}, the image {_sizes(seen)}: they must agree"
        return Listing((Pair(name, None, None),), (problem,))
    pairs = []
    for at in itertools.product(*(range(size) for size in seen.values())):
        plane = dict(zip(seen, at, strict=True))
        own = {axis: index for axis, index in plane.items() if axis in drawn}
        where = ",".join(f"{axis}={index:0{len(str(seen[axis] - 1))}}" for axis, index in plane.items())
        title = f"{name}/{where}" if where else name
        pairs.append(Pair(title, File.at(image, plane), File.at(masks[0], own)))
    return Listing(tuple(pairs))


def _planes(path: Location) -> dict[str, int]:
    try:
        return asked(path, lambda: planes(str(path)))
    except RaysegmentError:
        raise
    except Exception as e:  # damaged metadata makes zarr raise nearly anything
        raise InputError(f"{path} is not a readable Zarr: {type(e).__name__}: {e}") from e


def _sizes(axes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in axes.items()) or "y, x alone"
