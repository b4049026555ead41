"""How good a segmentation is, from counts that add up over blocks, images and workers.

Start with scores.py: a confusion matrix and everything that it says. boundary.py and rand.py count what it cannot say,
how well borders are placed and which cells are merged or cut. tally.py sums all of it over the images of a set.
"""

from raysegment.metrics.scores import ClassScore, Scores, confusion
from raysegment.metrics.tally import Tally

__all__ = ["ClassScore", "Scores", "Tally", "confusion"]
