"""What a network is trained to make small: a sum of weighted terms such as ``0.5*focal(alpha=0.25, gamma=2) + dice``.

Start with expression.py (the sum, parsed and computed), then answers.py (what every term is given), then the terms:
cross_entropy.py (``ce``, ``bce``), focal.py, overlap.py (``dice``, ``tversky``) and lovasz.py.
"""

from raysegment.training.losses.expression import Loss

__all__ = ["Loss"]
