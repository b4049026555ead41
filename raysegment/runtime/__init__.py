"""Where work runs. Start with `address.py`: what one says, and which of the three places it means.

embedded.py     a Ray that this process starts for itself; :func:`cluster` is what work asks for, wherever it is
connected.py    a running cluster, whose driver this process becomes; what it has, and what its nodes see
device.py       whether the workers of a run have GPUs; what is measured where they are
dashboard.py    the Ray Jobs of a cluster, over http: list, submit, log, stop
jobs.py         the same as the functions that people call
follow.py       a job's log to its end, through lost connections, and what the job answered
parcel.py       what travels with a job, and whether the cluster can see the rest
security.py     tokens, and what a cluster shows to strangers
doctor.py       what this machine and a cluster can do, and what would get in the way
"""

from raysegment.runtime.embedded import FRUGAL_ENVIRONMENT, WORKER_ENVIRONMENT, cluster, is_connected, joined

__all__ = ["FRUGAL_ENVIRONMENT", "WORKER_ENVIRONMENT", "cluster", "is_connected", "joined"]
