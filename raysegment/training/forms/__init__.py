"""The forms that a training set comes in, each a file of its own, all coming to pairs of image and mask.

Start with scene.py (what a form answers: Listing, Pair; what is trained on: Scene, Source), then find.py, which tells
the forms apart: folder.py, manifest.py, stores.py (Zarr, OME-Zarr), records.py (TFRecords; example.py reads their
protobuf). Masks may be polygons: masks.py, polygons.py, vector.py. A further form is a module with `recognises` and
`listing`, and its line in `find.FORMS`. leaks.py finds what stands in training and in validation,
placed.py masks that lie elsewhere than their images.
"""

from raysegment.training.forms.find import find_scenes, listing_of, scenes_of
from raysegment.training.forms.scene import File, Listing, Pair, Scene, Source

__all__ = ["File", "Listing", "Pair", "Scene", "Source", "find_scenes", "listing_of", "scenes_of"]
