"""Open any image lazily, as one (y, x, channel) plane.

Start at :func:`open_raster` (open.py) and at what it answers (protocol.py). One file per format family:
tiff.py (pyramid.py finds its levels, page.py decodes tiles and strips, jpeg.py and lerc.py those that tifffile
cannot, georeference.py reads the tags), zarr.py (zarr_metadata.py reads the attributes, zarr_place.py what the group
around an array says of its place, zarr_chunks.py finds the chunks that are there), picture.py; beside.py is for what
files beside an image say in its place. On top of them: salvage.py reads what can be read of a damaged image, glass.py
finds the bare glass of a slide, stored.py is which chunks a file holds. What they share: segment_cache.py (what stays
decoded), axes.py (which axis is which), validity.py (where there is data), crs.py (how coordinate systems are told),
identity.py (a digest of the content), window.py (the check before a read). Any of them at another resolution:
resolution.py chooses it, sampling.py is the view, resample.py its arithmetic.
"""

from raysegment.raster.open import open_raster
from raysegment.raster.protocol import PixelSize, Raster, Transform

__all__ = ["PixelSize", "Raster", "Transform", "open_raster"]
