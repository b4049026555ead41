"""Synthetic scenes of any size with their true masks: for demos, tests and benchmarks.

Start at :func:`synth` (synth.py), then landscape.py, which makes any window of the endless scene of a seed.
Its world, from the large to the small: terrain.py (river, bends), district.py (the cells it falls into),
countryside.py and village.py (what is in a cell), sketch.py (shapes, ready to be drawn), polygon.py and noise.py;
its looks: materials.py (classes and colours), texture.py. The files are written by scene_tiff.py and scene_zarr.py.
"""

from raysegment.scene.landscape import Landscape
from raysegment.scene.materials import CLASSES
from raysegment.scene.synth import SynthResult, synth

__all__ = ["CLASSES", "Landscape", "SynthResult", "synth"]
