"""Write the files that make a scheduler run `batch`, night after night. No daemon of our own.

What is asked: :class:`raysegment.nightly.job.JobFile`. Where it will run:
:class:`~raysegment.scheduling.scheduler.Site`.

One file per scheduler (`cron.py`, `systemd.py`, `slurm.py`, `kubernetes.py`), each a function from the two to texts,
made of `templates/`; another scheduler is one more such file and a line in `write.py`. `cron_line.py` knows what a cron
line means to each of them. `kuberay.py` checks manifests before they are written, by the schemas of `schemas/` and the
operator's own rules (`operator_rules.py`). `rayjob.py` is what a Kubernetes CronJob runs: it creates the RayJob and
waits.

Start with `write.py`.
"""
