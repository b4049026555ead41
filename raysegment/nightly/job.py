"""JOB.toml: what a batch job says of itself, checked whole before anything is done. Imports no torch, no ray."""

from __future__ import annotations

import difflib
import os
import re
import string
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from raysegment.errors import InputError, UsageError, first_complaint
from raysegment.geometry import Window
from raysegment.inference.request import Request, parse_bytes
from raysegment.nightly.quantities import next_firing, parse_duration, parse_zone
from raysegment.storage import is_url

#: What may stand in braces in `[output] path`.
PLACEHOLDERS = ("date", "stem", "relpath", "parent")

Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


class Table(BaseModel):
    """A table of the file: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InputTable(Table):
    """``[input]``: which images."""

    paths: tuple[str, ...] = Field(min_length=1)
    """Paths, globs (``**`` is any depth) and URLs."""
    newer_than: Duration | None = None
    """Only images that were changed within this time before the run begins."""

    @field_validator("paths", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class ModelTable(Table):
    """``[model]``: which network."""

    path: str = Field(min_length=1)


class OutputTable(Table):
    """``[output]``: where the mask of each image goes."""

    path: str
    """``*.zarr``, with ``{date}`` of the night, ``{stem}`` and ``{parent}`` folder of the image, and ``{relpath}``:
    its path below what is fixed of the pattern in ``[input] paths``, without the suffix."""

    @field_validator("path")
    @classmethod
    def _pattern(cls, value: str) -> str:
        check_placeholders(value, PLACEHOLDERS)
        if value.lower().endswith((".tif", ".tiff")):
            raise ValueError(f"{value!r}: masks as TIFF are not built yet; name it *.zarr")
        if not value.endswith(".zarr"):
            raise ValueError(f"{value!r}: the mask is an OME-Zarr; name it *.zarr")
        return value


class InferTable(Request):
    """``[infer]``: the options of `infer`, by their names on the command line."""

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """As in ``[cluster]``, which it beats."""
    scratch: str | None = None
    """Folder for unfinished work that all workers see; by default in the ledger."""
    select: dict[str, int] | None = None
    self_check: bool = False

    @field_validator("region", mode="before")
    @classmethod
    def _region(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            if len(value) != 4 or not all(isinstance(v, int) for v in value):
                raise ValueError(f"{value!r}: give [x, y, width, height] in pixels")
            x, y, width, height = value
            return Window(y=y, x=x, height=height, width=width)
        return value

    @field_validator("channels", mode="before")
    @classmethod
    def _channels(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("select", mode="before")
    @classmethod
    def _select(cls, value: Any) -> Any:
        return dict(pair.split("=", 1) for pair in value.split(",")) if isinstance(value, str) else value

    @property
    def request(self) -> Request:
        """What `infer` is asked for."""
        return Request(**{name: getattr(self, name) for name in Request.model_fields})


class ScheduleTable(Table):
    """``[schedule]``: when it runs, and how long it may."""

    cron: str | None = None
    timezone: str = "UTC"
    """Of the cron line, and of ``{date}``."""
    deadline: Duration | None = None
    """A run takes no further block in hand after this time; the next one goes on."""

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        parse_zone(value)
        return value

    @field_validator("cron")
    @classmethod
    def _fires(cls, value: str | None) -> str | None:
        if value is not None:
            next_firing(value, datetime.now(UTC))
        return value


class ClusterTable(Table):
    """``[cluster]``: where it runs, and what the scheduler's files ask for."""

    address: str | None = None
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Processes that segment; never changes the masks."""
    gpus: int | None = Field(default=None, ge=0)
    """Of each node, as are `cpus` and `memory`: a machine of Slurm, a pod of Kubernetes."""
    cpus: int | None = Field(default=None, ge=1)
    memory: str | None = None
    nodes: int | None = Field(default=None, ge=1)
    """How many; on Kubernetes at most so many, and none while there is nothing to do."""
    image: str | None = Field(default=None, pattern=r"^[\w.:/@-]+$")
    """Of the container."""
    namespace: str | None = Field(default=None, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)
    partition: str | None = Field(default=None, pattern=r"^[\w.,-]+$")
    account: str | None = Field(default=None, pattern=r"^[\w.,-]+$")
    secret: str | None = Field(default=None, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)
    """Name of a Kubernetes Secret whose entries become the environment of the pods: storage credentials."""
    volumes: dict[str, Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]] = Field(
        default_factory=dict
    )
    """PersistentVolumeClaim by the folder where the pods see it: {"/data" = "scenes"}."""

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        if value is not None:
            parse_bytes(value)
        return value

    @field_validator("volumes")
    @classmethod
    def _mounts(cls, value: dict[str, str]) -> dict[str, str]:
        for folder in value:
            if not re.fullmatch(r"(/[\w.-]+)+", folder):
                raise ValueError(f"{folder!r} is no folder of a pod: give an absolute path, such as /data")
        return value


class ReportTable(Table):
    """``[report]``: who is told."""

    path: str | None = None
    """Folder of report.json and report.html, with ``{date}``; by default in the ledger."""
    webhook: str | None = Field(default=None, repr=False)
    """Gets report.json's figures by POST. May hold a secret: it is never shown."""

    @field_validator("path")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        if value is not None:
            check_placeholders(value, ("date",))
        return value

    @field_validator("webhook")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("https://", "http://")):
            raise ValueError("give a URL that begins with https://")
        return value


class LedgerTable(Table):
    """``[ledger]``: where it is kept what was done."""

    path: str | None = None


class JobFile(Table):
    """A whole JOB.toml."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=63)
    input: InputTable
    model: ModelTable
    output: OutputTable
    infer: InferTable = InferTable()
    schedule: ScheduleTable = ScheduleTable()
    cluster: ClusterTable = ClusterTable()
    report: ReportTable = ReportTable()
    ledger: LedgerTable = LedgerTable()
    folder: Path = Field(exclude=True)
    """Where the file lies. Relative paths in it are meant from there: a scheduler starts it anywhere."""

    def place(self, path: str) -> str:
        """A path of the file as an absolute path; a URL as it is."""
        is_absolute = is_url(path) or path.lower().startswith("file://")
        return path if is_absolute else str(self.folder / Path(path).expanduser())

    @property
    def workers(self) -> int | Literal["auto"]:
        """Processes that segment."""
        return self.infer.workers if self.infer.workers is not None else self.cluster.workers

    @property
    def ledger_path(self) -> str:
        """Where the ledger is: as said, or below what is fixed of ``[output] path``."""
        if self.ledger.path is not None:
            return self.place(self.ledger.path)
        return f"{self.output_folder}/.raysegment/{self.name}"

    @property
    def output_pattern(self) -> str:
        """``[output] path``, absolute, to be filled in: braces in the name of the file's own folder are doubled."""
        if is_url(self.output.path):
            return self.output.path
        folder = str(self.folder).replace("{", "{{").replace("}", "}}")
        return str(Path(folder) / Path(self.output.path).expanduser())

    @property
    def output_folder(self) -> str:
        """What is fixed of ``[output] path``."""
        head = self.output.path.partition("{")[0]
        return head.rpartition("/")[0] if is_url(head) else self.place(os.path.dirname(head))


def load_job(path: str | Path) -> JobFile:
    """Read a job file. Raises InputError (missing, no TOML) and UsageError naming the key, the value, what to do."""
    file = Path(path).absolute()
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"cannot read the job file {path}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise InputError(f"{path} is not valid TOML: {e}") from e
    if isinstance(found.get("infer"), dict):  # as on the command line
        found["infer"] = {key.replace("-", "_"): value for key, value in found["infer"].items()}
    _refuse_unknown(found, JobFile, str(path), "")
    try:
        return JobFile.model_validate({**found, "folder": file.parent})
    except ValidationError as e:
        raise UsageError(f"{path}: {_complaint(e)}") from e


def check_placeholders(pattern: str, known: tuple[str, ...]) -> None:
    """Raise ValueError for braces that hold something else than a plain name of `known`."""
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as e:
        raise ValueError(f"{pattern!r}: {e}") from None
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if name not in known or form or conversion:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise ValueError(f"{pattern!r}: unknown placeholder {{{name}}}; the nearest is {{{near}}}")


def _refuse_unknown(found: Mapping[str, Any], kind: type[BaseModel], path: str, table: str) -> None:
    """Raise UsageError for a key that the table does not have, naming the nearest that it has."""
    fields = {name: field for name, field in kind.model_fields.items() if name != "folder"}
    for key, value in found.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0)[0]
            where = f" in [{table}]" if table else ""
            raise UsageError(f"{path}: unknown key {key!r}{where}; the nearest is {near!r}")
        inner = fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and not table:
            if not isinstance(value, dict):
                raise UsageError(f"{path}: {key} = {value!r} is a table: write [{key}]")
            _refuse_unknown(value, inner, path, key)


def _complaint(error: ValidationError) -> str:
    """ "[schedule] cron: '0 0 31 2 *' never fires …"."""
    first = error.errors()[0]
    table, *rest = map(str, first["loc"])
    message = first_complaint(error).partition(": ")[2]
    place = f"[{table}] {rest[0]}" if rest else table
    if first["type"] == "missing":
        return f"{place} is missing: give it"
    shown = "" if repr(first["input"]) in message or place.endswith("webhook") else f" ({first['input']!r})"
    return f"{place}: {message}{shown}"
