"""Where files lie: on this machine, or at a URL (s3://, gs://, https://). The one room that knows the difference.

`location.py` says which of the two a text names: a local `pathlib.Path`, or a :class:`Url` that answers to the same
names. `objects.py` does what differs: whole files written at once, trees removed, globs, digests. `url_file.py` reads
any bytes of one object, in as few requests as it can. `remote.py` is the wire: fsspec, its errors in one line, another
try after a failure that passes. `file_lock.py` is a lock on a disk, `lease.py` one for places where no system frees it
when its holder dies.

Start with `location.py`, then `objects.py`.
"""

from raysegment.storage.location import Location, Url, is_url, location

__all__ = ["Location", "Url", "is_url", "location"]
