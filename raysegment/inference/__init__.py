"""Segment images of any size: plan → segment blocks → stitch shards.

Read in this order: `grid.py` (tiles and blocks on one image), `blend.py` (weights), `plan.py` (what will be done,
decided once), `segmenter.py` (one block through the network), `stitch.py` (blocks to final pixels), `pipeline.py`
(both over Ray Data), `job.py` (one call, opened and settled), `run.py` (`infer` and `plan`).
"""
