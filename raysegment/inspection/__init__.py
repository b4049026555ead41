"""What an image, a training set, a model or a mask holds.

Start with look.py, which tells the four apart; one file for each says what is worth knowing of it.
"""

from raysegment.inspection.look import InspectResult, inspect

__all__ = ["InspectResult", "inspect"]
