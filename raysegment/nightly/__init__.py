"""Run `infer` over all that is new, every night, unattended: discover → minus what is done → one pipeline → ledger.

What is said: `job.py` (JOB.toml; imports neither torch nor ray), `quantities.py` (durations and cron lines in it).

What is decided: `discovery.py` (which images there are), `ledger.py` (what was done), `todo.py` (the one minus the
other).

What is done: `run.py` (`batch` and `status`), `night.py` (what becomes of each image while it runs; the work itself is
:func:`raysegment.inference.many.infer_many`), `metrics.py`, `record.py` and `report.py` (what is told), `webhook.py`,
`result.py`.

Start with `run.py`.
"""
