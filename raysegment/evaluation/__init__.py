"""Compare a mask with the truth: scores from pixel counts, summed block by block over images of any size.

One pass counts how often each pair of stored values (truth, prediction) meets (counts.py); what the values
mean is decided after that, from all that occurred (meaning.py), so no image is looked at twice and a value
without a meaning is named. Where the two differ in resolution or extent, alignment.py says which pixels meet.
Start with score.py.
"""

from raysegment.evaluation.score import EvaluateResult, evaluate

__all__ = ["EvaluateResult", "evaluate"]
