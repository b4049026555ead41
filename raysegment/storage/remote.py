"""The wire to object stores and web servers: fsspec, with its errors in one line and another try where that helps.

Who may do what is the storage's own affair: credentials come from where its tools look for them (``AWS_*``,
``~/.aws``, ``GOOGLE_APPLICATION_CREDENTIALS``, a machine's role), further settings from fsspec's own ``FSSPEC_*``
and ``~/.config/fsspec``. Nothing of it enters a message.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from raysegment import console
from raysegment.errors import GoneError, StorageError, UsageError

if TYPE_CHECKING:
    from raysegment.storage.location import Url

T = TypeVar("T")

#: Seconds before each further try. The clients of S3 and Google try five times and more by themselves before that.
WAITS_S = {"https": (0.5, 2.0, 8.0), "http": (0.5, 2.0, 8.0), "s3": (2.0,), "gs": (), "memory": ()}
_EXTRAS = {"s3": "s3", "gs": "gs"}
_ANONYMOUS = {"s3": " (FSSPEC_S3_ANON=true reads public data)"}
#: HTTP statuses that pass: too early, too many requests, and a server's own trouble.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_NO_RIGHT = (401, 403)


class Remote:
    """One kind of storage, as this process reaches it; safe from several threads."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    @functools.cached_property
    def fs(self) -> Any:
        """For callers that wait."""
        return _filesystem(self.scheme, asynchronous=False)

    @functools.cached_property
    def asynchronous_fs(self) -> Any:
        """For zarr, which has an event loop of its own."""
        fs = _filesystem(self.scheme, asynchronous=True)
        if not fs.async_impl:
            from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

            fs = AsyncFileSystemWrapper(fs, asynchronous=True)
        return fs

    def path(self, url: Url) -> str:
        """What the file system calls it."""
        return str(self.fs._strip_protocol(str(url)))

    def call(self, doing: str, url: Url, function: Callable[[Any, str], T]) -> T:
        """``function(file system, path)``, tried again after a failure that may pass.

        Raises GoneError where there is no such object, StorageError for all else: "cannot {doing} {url}: why".
        """
        path = self.path(url)
        return retried(doing, url, lambda: function(self.fs, path))


def remote(url: Url) -> Remote:
    """How this process reaches a URL. Raises UsageError where a package is missing for it."""
    return _of_scheme(url.scheme)


@functools.cache
def _of_scheme(scheme: str) -> Remote:
    return Remote(scheme)


def retried(doing: str, url: Url, work: Callable[[], T]) -> T:
    """The answer of `work`, which asks the storage; see :meth:`Remote.call`."""
    for wait_s in (*WAITS_S[url.scheme], None):
        try:
            return work()
        except (StorageError, UsageError):
            raise
        except Exception as e:  # every kind of storage raises errors of its own
            error = mapped(e, doing, url)
            if wait_s is None or error is None or not _may_pass(e):
                if error is None:
                    raise
                raise error from e
            console.detail(f"{error}; trying again in {wait_s:.0f} s")
        time.sleep(wait_s * random.uniform(0.5, 1.0))  # workers that failed together must not return together
    raise AssertionError


def mapped(error: Exception, doing: str, url: Url) -> StorageError | None:
    """What the failure of a storage is to us; None for one that is no storage's: codecs raise through it, too."""
    chain = _chain(error)
    status = next((s for s in map(_status, chain) if s is not None), None)
    if status in _NO_RIGHT or any(isinstance(e, PermissionError) for e in chain):
        return StorageError(f"cannot {doing} {url}: no right to, with the credentials found here")
    if any(type(e).__name__ in ("NoCredentialsError", "PartialCredentialsError") for e in chain):
        return StorageError(
            f"cannot {doing} {url}: no credentials were found here{_ANONYMOUS.get(url.scheme, '')}"
        )
    unreached = next((e for e in chain if _is_connection(e)), None)
    if unreached is not None:
        why = str(unreached).partition("\n")[0] or type(unreached).__name__
        return StorageError(f"cannot {doing} {url}: the storage does not answer: {why}")
    if status not in (None, 404):
        return StorageError(f"cannot {doing} {url}: the storage answers {status}")
    if any(isinstance(e, FileNotFoundError) for e in chain) or status == 404:
        return GoneError(f"cannot {doing} {url}: it does not exist")
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES:
        return StorageError(
            f"cannot {doing} {url}: {str(error).partition(chr(10))[0] or type(error).__name__}"
        )
    return None


_LIBRARIES = ("aiohttp", "botocore", "aiobotocore", "gcsfs", "google", "s3fs")


def _may_pass(error: Exception) -> bool:
    chain = _chain(error)
    status = next((s for s in map(_status, chain) if s is not None), None)
    if status is not None:
        return status in _PASSING
    if any(_is_connection(e) for e in chain):
        return True
    return isinstance(error, OSError) and not isinstance(
        error, (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
    )


def _chain(error: BaseException) -> list[BaseException]:
    """The error, and what it was raised from."""
    found: list[BaseException] = []
    while error not in found:
        found.append(error)
        error = error.__cause__ or error
    return found


def _status(error: BaseException) -> int | None:
    """The HTTP status that it stands for: aiohttp's, gcsfs's, botocore's."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(error, "status", None) or (
            None if hasattr(error, "status") else getattr(error, "code", None)
        )
    return found if isinstance(found, int) and 300 <= found < 600 else None


def _is_connection(error: BaseException) -> bool:
    """Whether nobody answered, or not to the end: of the standard library, aiohttp and botocore."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or bool(
        names & {"ClientConnectionError", "ClientPayloadError", "HTTPClientError", "ConnectionError"}
    )


def _filesystem(scheme: str, *, asynchronous: bool) -> Any:
    import fsspec

    # A listing that is kept is wrong as soon as another worker writes.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("http", "https"):
        options["client_kwargs"] = {"trust_env": True}  # HTTPS_PROXY
    if scheme != "memory":
        options["asynchronous"] = asynchronous
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints tracebacks of what it then tries again
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as e:
        extra = _EXTRAS.get(scheme, "https")
        raise UsageError(
            f"{scheme}:// needs a package that is not here: pip install 'raysegment[{extra}]'"
        ) from e
