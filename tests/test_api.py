"""The public names: exact, lazy, and never shadowed by a module."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import raysegment
import raysegment.model

ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", raysegment.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(raysegment, name) is getattr(raysegment, name)
    assert name in dir(raysegment)


def test_the_list_is_exact() -> None:
    own = {name for name in vars(raysegment) if not name.startswith("_")}
    modules = {m.name for m in pkgutil.iter_modules(raysegment.__path__)}
    machinery = {"annotations", "importlib", "TYPE_CHECKING", "Any"}
    assert own - modules - machinery <= set(raysegment.__all__)
    assert len(set(raysegment.__all__)) == len(raysegment.__all__)


def test_no_name_is_that_of_a_module() -> None:
    """Importing a submodule puts it into the package under its own name: over the function, if they share it."""
    modules = {m.name for m in pkgutil.iter_modules(raysegment.__path__)}
    assert not modules & set(raysegment.__all__)


def test_the_commands_are_functions() -> None:
    for name in (
        "train",
        "infer",
        "plan",
        "evaluate",
        "synth",
        "inspect",
        "preview",
        "export",
        "batch",
        "schedule",
        "doctor",
        "open_raster",
        "load_model",
    ):
        assert callable(getattr(raysegment, name)), name


def test_the_commands_of_jobs_are_functions() -> None:
    """Each raises what the command line says, as an exception of ours."""
    jobs = raysegment.jobs
    assert set(jobs.__all__) == {"list", "status", "logs", "stop"}
    for call in (
        jobs.list,
        lambda **options: jobs.status("a", **options),
        lambda **options: jobs.stop("a", **options),
    ):
        with pytest.raises(raysegment.UsageError, match=r"127\.0\.0\.1:6379: jobs are kept by the dashboard"):
            call(address="127.0.0.1:6379")


def test_every_command_of_the_command_line_is_a_function() -> None:
    from raysegment.cli.app import app

    named = {command.name for command in app.registered_commands} | {g.name for g in app.registered_groups}
    assert named - set(raysegment.__all__) == {
        "convert",
        "demo",
    }  # not built yet, and a round of all the others


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        raysegment.trian  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Modell'"):
        raysegment.model.Modell  # noqa: B018


def test_from_python_a_warning_is_one_of_python_s() -> None:
    said = python(
        "import warnings\nfrom raysegment import console\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    console.warn('the scores will flatter')\n"
        "    console.say('so it goes')\n"
        "print([(w.category.__name__, str(w.message)) for w in caught])"
    )
    assert said == "[('RaysegmentWarning', 'the scores will flatter')]"


def test_importing_loads_nothing_heavy() -> None:
    heavy = ["torch", "ray", "zarr", "numpy", "tifffile", "PIL", "pydantic", "typer"]
    assert python(f"import sys, raysegment; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_reading_a_spec_loads_no_torch() -> None:
    assert (
        python("import sys; from raysegment.model import ModelSpec; print('torch' in sys.modules)") == "False"
    )


def test_type_checkers_see_every_lazy_name() -> None:
    """What is imported for type checkers and what is looked up when it is used are the same."""
    text = (ROOT / "raysegment" / "__init__.py").read_text()
    block = text.split("if TYPE_CHECKING:")[1].split("__all__")[0]
    seen = {}
    for line in block.strip().splitlines():
        module, _, names = line.strip().removeprefix("from ").partition(" import ")
        seen.update({name.strip(): module for name in names.split(",")})
    assert seen == raysegment._HOME
    assert set(seen) <= set(raysegment.__all__)


def test_the_version_is_the_installed_one_or_says_that_it_is_none() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        expected = version("raysegment")
    except PackageNotFoundError:
        expected = "0.0.0+source"
    assert raysegment.__version__ == expected
