"""The root of the command line: one line per failure, exit codes, --config, --show-config, --help."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from raysegment.cli.app import app
from raysegment.cli.common import Result, command
from raysegment.errors import InputError, LockedError

runner = CliRunner()


@dataclass(frozen=True)
class Echo:
    """Answers with what the command was given."""

    values: dict[str, Any]
    exit_code: int = 0

    def summary(self) -> str:
        return "done"

    def to_json(self) -> dict[str, Any]:
        return self.values


@pytest.fixture
def probe() -> Iterator[str]:
    """A command with one option of every kind, registered for one test."""
    before = list(app.registered_commands)

    @command("probe", epilog="Examples:\n\n    raysegment probe a.tif --tile 256\n    raysegment probe b.tif")
    def probe(
        source: Annotated[list[str], typer.Argument()],
        tile: Annotated[int, typer.Option(min=1)] = 512,
        blend: Annotated[Literal["hann", "none"], typer.Option()] = "hann",
        batch_size: Annotated[str, typer.Option()] = "auto",
        channels: Annotated[str | None, typer.Option()] = None,
        region: Annotated[tuple[int, int, int, int] | None, typer.Option()] = None,
        lr: Annotated[float, typer.Option()] = 0.001,
        overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
        out: Annotated[Path | None, typer.Option()] = None,
        kind: Annotated[str, typer.Option("--type")] = "x",
        fail: Annotated[str | None, typer.Option()] = None,
    ) -> Result:
        errors: dict[str, BaseException] = {
            "input": InputError("no such\nimage"),
            "work": LockedError("held by another run"),
            "bug": KeyError("boom"),
            "ctrl-c": KeyboardInterrupt(),
        }
        if fail == "some":
            return Echo({}, exit_code=3)
        if fail == "term":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        if fail == "ray-term":
            raise SystemExit(signal.SIGTERM)
        if fail is not None:
            raise errors[fail]
        seen = {
            "source": source,
            "tile": tile,
            "blend": blend,
            "batch_size": batch_size,
            "lr": lr,
            "type": kind,
        }
        return Echo({**seen, "channels": channels, "region": region, "overwrite": overwrite, "out": str(out)})

    yield "probe"
    app.registered_commands[:] = before


def errors_of(result: Any) -> str:
    """The one line on stderr of a failed command."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["probe", "a", "--tiel", "3"], "--tile"),
        (["probe", "a", "--tile", "many"], "'--tile'"),
        (["probe", "a", "--tile", "0"], "'--tile'"),
        (["probe", "a", "--blend", "gauss"], "hann"),
        (["probe", "a", "--region", "1", "2"], "--region"),
        (["probe", "a", "--tile"], "--tile"),
        (["probe"], "source"),
        (["prob"], "the nearest is 'probe'"),
        (["--verison"], "--version"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_2(probe: str, words: list[str], said: str) -> None:
    result = runner.invoke(app, words)
    assert result.exit_code == 2
    assert said.lower() in errors_of(result).lower()
    assert result.stdout == ""


def test_a_usage_error_under_json_is_also_an_object_on_stdout(probe: str) -> None:
    result = runner.invoke(app, ["probe", "a", "--tile", "many", "--json"])
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    assert answer == {"error": errors_of(result).removeprefix("error: "), "exit_code": 2}
    assert "raysegment probe --help" in answer["error"] or "probe --help" in answer["error"]


def test_json_after_a_double_dash_is_an_argument(probe: str) -> None:
    assert runner.invoke(app, ["probe", "--tile", "many", "--", "--json"]).stdout == ""


@pytest.mark.parametrize(
    ("fail", "code", "said"),
    [
        ("input", 2, "error: no such image"),
        ("work", 1, "error: held by another run"),
        ("bug", 1, "error: KeyError: 'boom' (--verbose shows where)"),
        ("ctrl-c", 130, "error: interrupted"),
        ("term", 130, "error: interrupted"),
        ("ray-term", 130, "error: interrupted"),
    ],
)
def test_every_way_of_failing_has_its_code_and_one_line(probe: str, fail: str, code: int, said: str) -> None:
    result = runner.invoke(app, ["probe", "a", "--fail", fail])
    assert result.exit_code == code
    assert errors_of(result).startswith(said)
    assert result.stdout == ""


def test_a_result_may_ask_for_exit_3(probe: str) -> None:
    assert runner.invoke(app, ["probe", "a", "--fail", "some"]).exit_code == 3


def test_verbose_shows_the_traceback(probe: str) -> None:
    result = runner.invoke(app, ["probe", "a", "--fail", "bug", "--verbose"])
    assert "Traceback" in result.stderr
    assert "test_cli.py" in result.stderr


def test_sigterm_means_what_it_meant_before(probe: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    runner.invoke(app, ["probe", "a"])
    assert signal.getsignal(signal.SIGTERM) == before


def test_json_is_one_object_and_nothing_else(probe: str) -> None:
    result = runner.invoke(app, ["probe", "a", "b", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["source"] == ["a", "b"]
    assert result.stdout.count("\n") == 1


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return str(path)


def test_a_file_gives_values_of_every_kind(probe: str, tmp_path: Path) -> None:
    file = config(
        tmp_path,
        'source = ["a.tif", "b.tif"]\ntile = 256\nblend = "none"\nbatch_size = 4\nchannels = [0, 1, 2]\n'
        'region = [1, 2, 3, 4]\nlr = 1e-4\noverwrite = true\nout = "m.zarr"\ntype = "y"\n',
    )
    result = runner.invoke(app, ["probe", "--config", file, "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "source": ["a.tif", "b.tif"],
        "tile": 256,
        "blend": "none",
        "batch_size": "4",
        "channels": "0,1,2",
        "region": [1, 2, 3, 4],
        "lr": 1e-4,
        "overwrite": True,
        "out": "m.zarr",
        "type": "y",
    }


@pytest.mark.parametrize("order", [("before"), ("after")])
def test_a_flag_beats_the_file(probe: str, tmp_path: Path, order: str) -> None:
    file = ["--config", config(tmp_path, "tile = 256\nbatch-size = 4")]
    words = [*file, "--tile", "128"] if order == "before" else ["--tile", "128", *file]
    answer = json.loads(runner.invoke(app, ["probe", "a", *words, "--json"]).stdout)
    assert (answer["tile"], answer["batch_size"]) == (128, "4")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tiel = 3", "unknown key 'tiel'; the nearest is 'tile'"),
        ("batchsize = 3", "the nearest is 'batch-size'"),
        ("kind = 'z'", "unknown key 'kind'"),
        ("json = true", "unknown key 'json'"),
        ("tile = 0", "--tile"),
        ("tile = 'many'", "--tile"),
        ("tile = true", "tile = true: give a value"),
        ("blend = 'gauss'", "--blend"),
        ("overwrite = 'yes'", 'overwrite = "yes": give true or false'),
        ("region = [1, 2]", "--region"),
        ("[infer]\ntile = 3", "unknown key 'infer'"),
        ("tile = {a = 1}", "nested"),
        ("tile = ", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_line_and_exit_2(probe: str, tmp_path: Path, text: str, said: str) -> None:
    result = runner.invoke(app, ["probe", "a", "--config", config(tmp_path, text)])
    assert result.exit_code == 2
    assert said in errors_of(result)


def test_a_missing_file_is_named(probe: str, tmp_path: Path) -> None:
    result = runner.invoke(app, ["probe", "a", "--config", str(tmp_path / "no.toml")])
    assert result.exit_code == 2
    assert "no.toml" in errors_of(result)


def test_show_config_says_where_each_value_came_from(probe: str, tmp_path: Path) -> None:
    words = ["probe", "a", "--config", config(tmp_path, "tile = 256"), "--lr", "0.5", "--show-config"]
    shown = json.loads(runner.invoke(app, [*words, "--json"]).stdout)
    assert shown["tile"] == {"value": 256, "from": "file"}
    assert shown["lr"] == {"value": 0.5, "from": "command line"}
    assert shown["blend"] == {"value": "hann", "from": "default"}


def test_what_show_config_prints_is_a_config_file(probe: str, tmp_path: Path) -> None:
    words = [
        "--tile",
        "64",
        "--region",
        "1",
        "2",
        "3",
        "4",
        "--channels",
        "0,1",
        "--out",
        "a b.zarr",
        "--overwrite",
    ]
    text = runner.invoke(app, ["probe", "x.tif", *words, "--show-config"]).stdout
    again = runner.invoke(app, ["probe", "--config", config(tmp_path, text), "--json"])
    direct = runner.invoke(app, ["probe", "x.tif", *words, "--json"])
    assert direct.exit_code == 0, direct.stderr
    assert again.stdout == direct.stdout


def test_examples_stay_line_for_line(probe: str) -> None:
    text = runner.invoke(app, ["probe", "--help"]).stdout
    assert "  raysegment probe a.tif --tile 256\n" in text


def commands() -> list[str]:
    return [c.name for c in app.registered_commands if c.name is not None]


def test_every_command_of_the_contract_is_there_in_its_order() -> None:
    built = ["train", "infer", "evaluate", "batch", "schedule", "inspect", "preview", "export"]
    assert commands() == [*built, "synth", "demo", "doctor", "convert"]
    assert [group.name for group in app.registered_groups] == ["jobs"]


@pytest.mark.parametrize("name", ["convert"])
def test_a_promised_command_says_so(name: str) -> None:
    result = runner.invoke(app, [name, "something", "--on", "cron", "--json"])
    assert result.exit_code == 2
    assert "not built" in errors_of(result)
    assert json.loads(result.stdout)["exit_code"] == 2
    assert "Not built yet" in runner.invoke(app, [name, "--help"]).stdout


def test_every_command_has_help_with_examples() -> None:
    for name in commands()[:9]:
        result = runner.invoke(app, [name, "--help"])
        assert result.exit_code == 0, name
        assert f"raysegment {name} " in result.stdout.split("--help", 1)[1], f"{name} has no example"


def test_no_command_shows_the_help_and_is_an_error() -> None:
    result = runner.invoke(app, [])
    assert result.exit_code == 2
    assert "Commands:" in result.stdout


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "cli.py", *words], capture_output=True, text=True, check=False, cwd=ROOT
    )


ROOT = Path(__file__).parents[1]


def test_the_script_says_what_the_runner_says() -> None:
    result = run("infr", "--json")
    assert result.returncode == 2
    assert errors_of(result) == "error: no command 'infr'; the nearest is 'infer'; see `raysegment --help`"
    assert json.loads(result.stdout)["exit_code"] == 2


def _hear_interrupts() -> None:
    """A shell starts what it runs in the background deaf to them, and children take that over."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_second_sigterm_leaves_it_time_to_tell_of_its_end() -> None:
    code = (
        "import time\n"
        "from raysegment.cli.common import app, command\n"
        "@command('idle')\n"
        "def idle():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('ending', flush=True)\n"
        "        time.sleep(1)\n"
        "        print('told', flush=True)\n"
        "@app.callback()\n"
        "def root(): ...\n"
        "app(['idle'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    for line in ("ready\n", "ending\n"):
        assert process.stdout.readline() == line
        process.terminate()
    stdout, _ = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, "told\n")


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_that_leaves_ends_nothing(closed: str) -> None:
    code = (
        "from raysegment import console\n"
        "console.configure('human')\n"
        "input()\n"
        "for _ in range(2):\n"
        "    console.say('talk')\n"
        "    console.result('outcome', {})\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], text=True, cwd=ROOT, **pipes) as process:
        assert process.stdin is not None
        other = process.stderr if closed == "stdout" else process.stdout
        gone = process.stdout if closed == "stdout" else process.stderr
        assert other is not None
        assert gone is not None
        gone.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert set(other.read().split()) == {"talk" if closed == "stdout" else "outcome"}
    assert process.returncode == 0


@pytest.mark.parametrize(("full", "code"), [("stderr", 0), ("stdout", 1)])
def test_a_full_disk_under_the_log_ends_nothing_and_under_the_result_is_one_line(
    full: str, code: int
) -> None:
    with open("/dev/full", "w") as disk, open(os.devnull, "w") as nowhere:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, full: disk}
        words = [sys.executable, "cli.py", "inspect", str(nowhere.name), "--json"]
        missing = subprocess.run(words, text=True, cwd=ROOT, check=False, **streams)
        words = [sys.executable, "cli.py", "--version"]
        done = subprocess.run(words, text=True, cwd=ROOT, check=False, **streams)
    assert (missing.returncode, done.returncode) == (2, code)
    if full == "stdout":
        assert missing.stderr.count("\n") == done.stderr.count("\n") == 1
    else:
        assert json.loads(missing.stdout)["exit_code"] == 2


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_real_process_that_is_interrupted_exits_with_130(sent: signal.Signals) -> None:
    code = (
        "import time\n"
        "from raysegment.cli.common import app, command\n"
        "@command('idle')\n"
        "def idle():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "@app.callback()\n"
        "def root(): ...\n"
        "app(['idle', '--json'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=_hear_interrupts,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert json.loads(stdout)["exit_code"] == 130
    assert stderr.startswith("error: interrupted")
    assert stderr.count("\n") == 1


def test_version() -> None:
    import raysegment

    assert run("--version").stdout == f"raysegment {raysegment.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "ray", "zarr", "numpy", "tifffile", "PIL", "scipy", "pandas", "psutil", "rich"]
    code = (
        "import sys\n"
        "from raysegment.cli.app import app\n"
        "app(['--help'], standalone_mode=False)\n"
        f"print('loaded:', *(m for m in {heavy} if m in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "Commands:" in result.stdout
    assert result.stdout.splitlines()[-1] == "loaded:"
