"""From DATA to its scenes: which form it is, what pairs up, and whether image and mask fit each other.

`train` wants scenes and stops at the first problem; `inspect` wants every problem. Both go through
:func:`listing_of` and :func:`open_pair`, so they cannot disagree.
"""

from __future__ import annotations

import os

from raysegment.errors import InputError, RaysegmentError
from raysegment.geometry import Size
from raysegment.raster import Raster
from raysegment.storage import Location, Url, location
from raysegment.storage.objects import before_work
from raysegment.storage.remote import remote
from raysegment.threads import OPENERS, in_order
from raysegment.training.forms import folder, manifest, records, stores
from raysegment.training.forms.placed import displacement
from raysegment.training.forms.scene import File, Form, Listing, Pair, Scene, Source

#: In the order in which they are tried.
FORMS: tuple[Form, ...] = (folder, manifest, stores, records)
#: EXIF orientations from this one on exchange height and width.
_QUARTER = 5
EXPECTED = (
    "a folder with images/ and masks/, a CSV, Parquet or JSONL manifest with the columns image,mask[,split], "
    "a Zarr group with image and mask or labels/, or TFRecords"
)


def form_of(data: str | os.PathLike[str]) -> Form | None:
    """The form of a training set, None when it is none. Raises InputError for what cannot be read."""
    place = location(data)
    try:
        with before_work():
            return next((form for form in FORMS if form.recognises(place)), None)
    except OSError as e:
        raise InputError(f"cannot read {e.filename or place}: {e.strerror}") from e


def listing_of(data: str | os.PathLike[str]) -> Listing:
    """All pairs and problems, by names alone. Raises InputError when this is no training set at all."""
    with before_work():
        return _listing_of(location(data), data)


def _listing_of(place: Location, data: str | os.PathLike[str]) -> Listing:
    form = form_of(place)
    if form is None and isinstance(place, Url) and not place.is_writable:
        if place.suffix:  # a file: that it is not to be had says more than what it is not
            remote(place).call("read", place, lambda fs, path: fs.info(path))
        raise InputError(
            f"{data} is no training set, or a folder, of which a web server gives no list: "
            "give a manifest, a Zarr store or a file of TFRecords"
        )
    if form is None and not place.exists():
        raise InputError(f"{data} does not exist: give {EXPECTED}")
    if form is None:
        raise InputError(f"{data} is no training set: give {EXPECTED}")
    found = form.listing(place)
    if not found.pairs and not found.problems:
        raise InputError(f"{data} holds no images: give {EXPECTED}")
    return found


def scenes_of(listing: Listing, data: str | os.PathLike[str]) -> tuple[Scene, ...]:
    """The pairs, each looked at. Raises InputError for whatever does not pair up or fit."""
    if listing.problems:
        more = len(listing.problems) - 1
        others = f" (and {more} more: raysegment inspect {data} lists all problems)" if more else ""
        raise InputError(f"{listing.problems[0]}{others}")
    return tuple(in_order(open_pair, listing.pairs, OPENERS))


def find_scenes(data: str | os.PathLike[str]) -> tuple[Scene, ...]:
    """All scenes of a training set, in the order of their names. Raises InputError as `scenes_of` does."""
    return scenes_of(listing_of(data), data)


def open_pair(pair: Pair) -> Scene:
    """The scene of a pair, by the headers of its image and mask. Raises InputError when they do not fit."""
    assert pair.image is not None
    assert pair.mask is not None
    image, mask = header(pair.image), header(pair.mask)
    size, mask_size = Size(*image.shape[:2]), Size(*mask.shape[:2])
    if why := turned(pair, image, mask):
        raise InputError(why)
    if size != mask_size:
        raise InputError(
            f"{pair.image} is {size.height} × {size.width} px, its mask {pair.mask} "
            f"{mask_size.height} × {mask_size.width}: they must be of one size"
        )
    return Scene(pair.name, pair.image, pair.mask, size, displacement(image, mask))


def header(source: Source) -> Raster:
    """An image or a mask, closed: what its header says stays. Raises InputError and its kin with the source's name."""
    try:
        raster = source.open()
    except RaysegmentError as e:
        # A picture inside a file cannot name itself.
        raise e if isinstance(source, File) else type(e)(f"{source}: {e}") from e
    raster.close()
    return raster


def turned(pair: Pair, image: Raster, mask: Raster) -> str | None:
    """Why a mask may fit a picture as viewers show it and not as it is stored; None where that is out of the question.

    Programs in which masks are drawn turn pictures by their EXIF orientation; those that compute masks mostly do not.
    """
    orientation = getattr(image, "orientation", 1)
    if orientation == getattr(mask, "orientation", 1):
        return None
    size, mask_size = image.shape[:2], mask.shape[:2]
    upright = size[::-1] if orientation >= _QUARTER else size
    if mask_size != upright:  # it fits the picture as stored, or nothing at all
        return None
    return (
        f"{pair.image} is shown turned or mirrored (EXIF orientation {orientation}) but read as stored, and its mask "
        f"{pair.mask} may be drawn on what is shown: save the image upright (magick mogrify -auto-orient), or take "
        "the orientation out of it (exiftool -Orientation=) where the mask fits it as stored"
    )
