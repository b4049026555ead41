"""The class index of a run, kept beside its checkpoint: made once, and again only when the masks are others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from raysegment.errors import StorageError, WorkError
from raysegment.storage import Location, Url
from raysegment.storage.objects import fetched, put
from raysegment.training.balance import ClassIndex, build_index
from raysegment.training.windows import WindowReader

#: Raised when what an index holds changes its meaning.
_FORMAT = 1


def class_index(path: Location, reader: WindowReader, classes: Sequence[int], identity: str) -> ClassIndex:
    """The index of `classes` in the reader's scenes, from the file at `path` when it was made of the same.

    `identity`: a digest of the scenes' contents. Raises ReadError and InputError for masks that cannot be read,
    WorkError when the file cannot be written.
    """
    made_of = _digest(reader, classes, identity)
    found = _load(path, made_of)
    if found is None:
        found = build_index(reader, classes)
        _store(path, found, made_of)
    return found


def _digest(reader: WindowReader, classes: Sequence[int], identity: str) -> str:
    """Of all that decides what the index holds."""
    coding = sorted(reader.classes.codes.items())
    sizes = [scene.size for scene in reader.scenes]
    text = json.dumps([_FORMAT, identity, coding, list(classes), sizes])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _load(path: Location, made_of: str) -> ClassIndex | None:
    """None where there is no file, or one of something else, or half a file."""
    if not path.is_file():
        return None
    try:
        with safe_open(fetched(path) if isinstance(path, Url) else path, framework="np") as file:
            if (file.metadata() or {}).get("made_of") != made_of:
                return None
            return ClassIndex(file.get_tensor("groups"), file.get_tensor("places"))
    except StorageError:
        raise
    except (SafetensorError, OSError):
        return None


def _store(path: Location, index: ClassIndex, made_of: str) -> None:
    try:
        put(path, save({"groups": index.groups, "places": index.places}, {"made_of": made_of}))
    except StorageError:
        raise
    except OSError as e:
        raise WorkError(f"cannot write {path}: {e.strerror}") from e
