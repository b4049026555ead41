"""Segment images of any size: plan → segment blocks → stitch shards.

What is computed: `grid.py` (tiles and blocks on one image), `blend.py` (weights), `block.py` (a block's pixels),
`network.py` (tiles in, probabilities out), `segmenter.py` (one block), `record.py` (what it leaves), `outcome.py`
(sums to classes), `stitch.py` (records to pixels).

What is decided: `request.py` (what is asked), `image.py` and `foreground.py` (of one image), `job.py` (of all of them,
against what is there), `auto.py` (what is measured), `resolve.py` (all of it into a plan), `plan.py` (the plan),
`selfcheck.py` (whether it holds).

What is done: `run.py` (`infer`), `many.py` and `joining.py` (many images that go their own ways), `policy.py` (how
failures are taken), `estimate.py` (`plan`), `options.py` (what either may be told), `flow.py` (all of a run at once),
`assembly.py` (which shard may be written when), `agenda.py` (what is next), `crew.py` (the workers, over Ray),
`worker.py` and `writing.py` (what one of them does), `scratch.py` (the resume), `finish.py`.

Start with `grid.py`, then `segmenter.py`, then `flow.py`.
"""
