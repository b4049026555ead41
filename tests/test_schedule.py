"""`schedule`: what each scheduler is told means what the job file says, and what it could not run is refused before."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st
from namespace import need
from typer.testing import CliRunner

from raysegment.cli.app import app
from raysegment.errors import OutputExistsError, UsageError
from raysegment.nightly.job import JobFile, load_job
from raysegment.scheduling import kuberay
from raysegment.scheduling.cron import cron
from raysegment.scheduling.cron_line import CronLine, in_zone
from raysegment.scheduling.kubernetes import kubernetes, ray_cron_job
from raysegment.scheduling.scheduler import Scheduler, Site
from raysegment.scheduling.slurm import slurm
from raysegment.scheduling.systemd import systemd
from raysegment.scheduling.write import schedule

HOOK = "https://hooks.example.org/services/T0P/S3CR3T"
JOB = f"""
name = "nightly"
input.paths = ["s3://scenes/*.tif"]
model.path = "s3://models/m.safetensors"
output.path = "s3://masks/{{date}}/{{stem}}.zarr"
report.webhook = "{HOOK}"
[schedule]
cron = "0 2 * * *"
timezone = "UTC"
deadline = "6h"
[cluster]
workers = 8
gpus = 1
nodes = 4
image = "registry.example.org/raysegment:1"
secret = "storage"
"""
ALL: list[Scheduler] = [cron, systemd, slurm, kubernetes, ray_cron_job]


def read(folder: Path, text: str = JOB) -> JobFile:
    (folder / "job.toml").write_text(text)
    return load_job(folder / "job.toml")


def site(**other: Any) -> Site:
    usual = {
        "job_file": Path("/etc/raysegment/job.toml"),
        "folder": Path("/var/lib/raysegment"),
        "python": "/opt/raysegment/bin/python",
        "user": "raysegment",
        "timezone": "UTC",
        "ray_version": "2.60.0",
    }
    return Site(**{**usual, **other})


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    span = st.tuples(number, number).map(lambda ab: f"{min(ab)}-{max(ab)}")
    item = st.one_of(
        number.map(str), span, st.tuples(span, st.integers(1, 9)).map(lambda s: f"{s[0]}/{s[1]}")
    )
    return st.one_of(st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join))


LINES = st.tuples(field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 7)).map(" ".join)
START = datetime(2026, 3, 1, tzinfo=UTC)


def firings(line: CronLine | str, start: datetime = START, count: int = 50) -> list[datetime]:
    return list(islice(CronSim(str(line), start), count))


@given(LINES)
def test_a_line_in_plain_numbers_fires_when_the_written_one_does(text: str) -> None:
    plain = str(CronLine.parse(text))
    assert firings(plain) == firings(text)
    assert "7" not in plain.split()[4]  # Kubernetes knows Sunday as 0 alone


@given(field(0, 59), field(0, 23), field(0, 7), st.integers(-14 * 60, 14 * 60))
def test_shifted_lines_fire_together_so_much_later(minute: str, hour: str, weekday: str, by: int) -> None:
    line = CronLine.parse(f"{minute} {hour} * * {weekday}")
    moved = sorted({at for part in line.shifted(by) for at in firings(part, START + timedelta(minutes=by))})
    assert moved[:50] == [at + timedelta(minutes=by) for at in firings(line)]


def test_days_of_the_month_do_not_move_over_midnight(tmp_path: Path) -> None:
    job = read(tmp_path, JOB.replace("0 2 * * *", "0 2 1 * *").replace('"UTC"', '"Asia/Tokyo"'))
    with pytest.raises(
        UsageError, match=r"days of the month cannot be moved over midnight; set timezone to UTC"
    ):
        cron(job, site())
    assert "*-*-1 02:00:00 Asia/Tokyo" in systemd(job, site()).files["raysegment-nightly.timer"]


@pytest.mark.parametrize(
    ("zone", "machine", "count"),
    [
        ("UTC", "UTC", 1),
        ("Asia/Kolkata", "UTC", 1),
        ("Europe/Berlin", "Europe/Paris", 1),
        ("Europe/Berlin", "UTC", 2),
        ("America/New_York", "Europe/Berlin", 3),
    ],
)
def test_a_machine_in_another_zone_fires_at_the_same_moments(zone: str, machine: str, count: int) -> None:
    """All year, judged minute by minute as cron and the guard do it."""
    line = CronLine.parse("30 4,23 * * 1-5")
    entries = in_zone(line, zone, machine, START)
    fired = set()
    for entry in entries:
        for at in CronSim(str(entry.line), START.astimezone(ZoneInfo(machine))):
            if at > START + timedelta(days=365):
                break
            shown = f"{at.astimezone(ZoneInfo(zone)):%z} {at:%z}"
            wanted = None if entry.guard is None else entry.guard.removeprefix("*").replace("*", " ")
            if wanted is None or wanted == shown:
                fired.add(at.astimezone(UTC))
    wanted = [
        at for at in firings(line, START.astimezone(ZoneInfo(zone)), 800) if at <= START + timedelta(days=365)
    ]
    assert {entry.guard is None for entry in entries} == {count == 1}
    assert len({entry.guard for entry in entries}) == count
    assert sorted(fired) == [at.astimezone(UTC) for at in wanted]


@given(LINES)
def test_systemd_means_the_same_moments(text: str) -> None:
    need("systemd-analyze")
    line = CronLine.parse(text)
    spoken = [
        subprocess.run(
            [
                "systemd-analyze",
                "calendar",
                "--iterations=6",
                f"--base-time={START:%Y-%m-%d %H:%M:%S UTC}",
                said,
            ],
            capture_output=True,
            text=True,
            check=True,
            env={"TZ": "UTC", "PATH": "/usr/bin:/bin"},
        ).stdout
        for said in line.calendar("UTC")
    ]
    words = [
        row.split()[-3:-1]
        for text in spoken
        for row in text.splitlines()
        if " form: " not in row and row.endswith(" UTC")
    ]
    found = {datetime.fromisoformat(f"{day}T{time}+00:00") for day, time in words}
    assert sorted(found)[:6] == firings(line)[:6]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 2 L * *", "not every scheduler reads 'L'"),
        ("0 2 * * 1#2", "not every scheduler reads '1#2'"),
        ("5/15 2 * * *", "not every scheduler reads '5/15'"),
        ("0 2 */2 * 1", "list the days"),
    ],
)
def test_what_schedulers_read_differently_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        CronLine.parse(text)


@pytest.mark.parametrize("scheduler", ALL)
def test_every_file_opens_with_its_commands_and_holds_no_secret(scheduler: Scheduler, tmp_path: Path) -> None:
    rendered = scheduler(read(tmp_path), site())
    texts = list(rendered.files.values())
    for text in texts:
        opening = [line.startswith("#") for line in text.splitlines()[:4]]
        assert all(opening), text
        assert "Needs: " in text
        assert text.endswith("\n")
        assert max(map(len, text.splitlines())) < 400
    for line in rendered.apply:
        assert any(line in text for text in texts), line
    assert "S3CR3T" not in "".join(texts) + "".join(rendered.apply)


@pytest.mark.parametrize("scheduler", ALL)
def test_without_cron_line_or_deadline(scheduler: Scheduler, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\[schedule\] cron is missing"):
        scheduler(read(tmp_path, JOB.replace('cron = "0 2 * * *"', "")), site())
    text = "".join(scheduler(read(tmp_path, JOB.replace('deadline = "6h"', "")), site()).files.values())
    assert "activeDeadlineSeconds" not in text
    assert "--time=3" not in text
    assert "timeout " not in text


@pytest.mark.parametrize("value", ["night\n#SBATCH --uid=0", "night; rm -rf /", "$(id)", ""])
@pytest.mark.parametrize("key", ["partition", "account", "namespace", "image", "secret", "memory"])
def test_nothing_of_the_job_file_breaks_out_of_its_line(key: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"\[cluster\] {key}"):
        read(
            tmp_path,
            JOB.replace('image = "registry.example.org/raysegment:1"\nsecret = "storage"', "")
            + f"{key} = {json.dumps(value)}\n",
        )


@pytest.mark.parametrize("scheduler", ALL)
@pytest.mark.parametrize("path", ['/data/it\'s 100% $HOME `id` "here"/job.toml', "/data/a b/job.toml"])
def test_odd_paths_stay_one_word(scheduler: Scheduler, path: str, tmp_path: Path) -> None:
    """The shell itself says which words it saw."""
    rendered = scheduler(read(tmp_path), site(job_file=Path(path)))
    if scheduler is cron:
        line = rendered.files["nightly.crontab"].splitlines()[-2].split(" ", 5)[5].replace(r"\%", "%")
        script = line.replace("timeout", "printf '%s\\n'").replace(
            ">>/var/lib/raysegment/nightly.log 2>&1", ""
        )
    elif scheduler is slurm:
        script = rendered.files["nightly.sbatch"]
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
        script = "printf '%s\\n' " + script.partition("-m raysegment batch ")[2].partition(" || true")[0]
    elif scheduler is systemd:
        service = rendered.files["raysegment-nightly.service"]
        assert 'ExecStart=/opt/raysegment/bin/python -m raysegment batch "/data/' in service
        return
    else:
        script = rendered.apply[0].partition(" | ")[0].replace("kubectl", "printf '%s\\n'", 1)
        path = f"--from-file=job.toml={path}"
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert path in said.splitlines()


def test_a_control_character_in_a_path_is_refused() -> None:
    with pytest.raises(UsageError, match="no scheduler takes"):
        site(folder=Path("/var/lib/a\nb"))


def test_what_kubernetes_gets(tmp_path: Path) -> None:
    manifests = {
        m["kind"]: m for m in yaml.safe_load_all(kubernetes(read(tmp_path), site()).files["nightly.yaml"])
    }
    spec = manifests["CronJob"]["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == ("0 2 * * *", "UTC", "Forbid")
    job = yaml.safe_load(manifests["ConfigMap"]["data"]["rayjob.yaml"])
    assert job["spec"]["submissionMode"] == "HTTPMode"
    deadlines = (
        6 * 3600,
        job["spec"]["activeDeadlineSeconds"],
        spec["jobTemplate"]["spec"]["activeDeadlineSeconds"],
    )
    assert deadlines == tuple(sorted(set(deadlines)))  # each gives the one inside time to end by itself
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (0, 4)
    (box,) = workers["template"]["spec"]["containers"]
    assert box["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert manifests["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list"]}
    ]
    labels = manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    for group in (cluster["headGroupSpec"], workers):
        assert labels.items() <= group["template"]["metadata"]["labels"].items()


def test_kubectl_knows_every_field_of_the_cron_job(tmp_path: Path) -> None:
    """A field that it does not know would be dropped on the way through its types."""
    need("kubectl")
    made = kubernetes(read(tmp_path), site()).files["nightly.yaml"]
    job = next(m for m in yaml.safe_load_all(made) if m["kind"] == "CronJob")
    said = subprocess.run(
        ["kubectl", "set", "env", "--local", "-f", "-", "-o", "json", "EXTRA=1"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=True,
    )
    typed = json.loads(said.stdout)["spec"]
    pod = typed["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    pod["env"] = [entry for entry in pod["env"] if entry["name"] != "EXTRA"]
    _assert_within(job["spec"], typed)


def _assert_within(part: Any, whole: Any) -> None:
    if isinstance(part, dict):
        for key, value in part.items():
            assert key in whole, key
            _assert_within(value, whole[key])
    elif isinstance(part, list):
        assert len(part) == len(whole)
        for a, b in zip(part, whole, strict=True):
            _assert_within(a, b)
    else:
        assert part == whole


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('image = "registry.example.org/raysegment:1"', "", r"\[cluster\] image is missing"),
        ("workers = 8", 'workers = "auto"', "sees no nodes before there are any"),
        ("workers = 8", 'workers = 8\naddress = "auto"', "a cluster of its own"),
        (
            '"s3://models/m.safetensors"',
            '"m.safetensors"',
            r"\[model\] path 'm.safetensors': the pods do not see it",
        ),
        ('"s3://models/m.safetensors"', '"/data/../m.safetensors"', "the pods do not see it"),
        ("[schedule]", 'infer.foreground = "tissue.tif"\n[schedule]', r"\[infer\] foreground 'tissue.tif'"),
        ('name = "nightly"', 'name = "2nightly"', "a name begins with a letter"),
        ('name = "nightly"', f'name = "{42 * "n"}"', "41 characters, not 42"),
    ],
)
def test_what_pods_could_not_do_is_refused(old: str, new: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        kubernetes(read(tmp_path, JOB.replace(old, new)), site())


def test_a_volume_makes_local_paths_visible(tmp_path: Path) -> None:
    text = JOB.replace("s3://models", "/data/models").replace(
        "[cluster]", '[cluster]\nvolumes = {"/data" = "scenes"}'
    )
    made = kubernetes(read(tmp_path, text), site()).files["nightly.yaml"]
    assert 'claimName: "scenes"' in made
    assert 'mountPath: "/data"' in made
    with pytest.raises(UsageError, match="no folder of a pod"):
        read(tmp_path, text.replace('"/data" =', '"data" ='))


def _job(change: Callable[[dict[str, Any]], None], tmp_path: Path, kind: str = "RayJob") -> dict[str, Any]:
    scheduler, at = {
        "RayJob": (kubernetes, "nightly.yaml"),
        "RayCronJob": (ray_cron_job, "nightly-raycronjob.yaml"),
    }[kind]
    manifests = {m["kind"]: m for m in yaml.safe_load_all(scheduler(read(tmp_path), site()).files[at])}
    made = (
        yaml.safe_load(manifests["ConfigMap"]["data"]["rayjob.yaml"]) if kind == "RayJob" else manifests[kind]
    )
    made = copy.deepcopy(made)
    kuberay.check(made)
    change(made)
    return made


def at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets what lies at a path such as spec.rayClusterSpec; None takes it away."""

    def change(manifest: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        node: Any = manifest
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        if value is None:
            node.pop(last)
        else:
            node[last] = value

    return change


RULE = {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED"}}
WORKERS = "spec.rayClusterSpec.workerGroupSpecs.0"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.sumbissionMode", "HTTPMode", "'sumbissionMode' was unexpected"),
        ("spec.backoffLimit", "three", "backoffLimit: 'three' is not of type 'integer'"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens", "'tokens' is not one of"),
        (f"{WORKERS}.maxReplicas", None, "'maxReplicas' is a required property"),
        ("metadata.generateName", 43 * "n", "48 characters, at most 47"),
        ("metadata.generateName", "Nightly-", "no DNS label"),
        ("spec.submissionMode", "K8sjobmode", "submissionMode 'K8sjobmode' is none of"),
        ("spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"),
        ("spec.activeDeadlineSeconds", 0, "activeDeadlineSeconds must be above 0"),
        (
            "spec.clusterSelector",
            {"ray.io/cluster": "a"},
            "exactly one of rayClusterSpec and clusterSelector",
        ),
        ("spec.deletionStrategy.deletionRules", [RULE], "deletionRules exclude shutdownAfterJobFinishes"),
        (f"{WORKERS}.minReplicas", 9, "minReplicas 9 is above maxReplicas 4"),
        (f"{WORKERS}.rayStartParams.labels", "a=b", "labels do not belong into rayStartParams"),
        (f"{WORKERS}.template.spec.restartPolicy", "Always", "the autoscaler v2 needs restartPolicy Never"),
        ("spec.rayClusterSpec.rayVersion", "2.51.2", "needs rayVersion 2.52.0 or newer, not 2.51.2"),
        ("spec.rayClusterSpec.authOptions.enableK8sTokenAuth", True, "not for jobs"),
        ("spec.rayClusterSpec.networkPolicy", {"mode": "DenyAll"}, "networkPolicy needs a feature gate"),
        ("spec.submissionMode", "InteractiveMode", "InteractiveMode excludes entrypoint"),
    ],
)
def test_a_ray_job_that_the_operator_would_refuse(path: str, value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        kuberay.check(_job(at(path, value), tmp_path))


RULES = "spec.jobTemplate.deletionStrategy.deletionRules"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("metadata.name", 37 * "n", "37 characters, at most 36"),
        ("spec.schedule", "0 2 31 2 *", "never fires"),
        ("spec.schedule", "TZ=UTC 0 2 * * *", "it belongs into timeZone"),
        ("spec.timeZone", "Europe/Atlantis", "is no time zone"),
        (f"{RULES}.0.policy", "DeleteWorkers", "DeleteWorkers is not allowed with autoscaling"),
        (f"{RULES}.1.policy", "DeleteCluster", "two deletion rules say DeleteCluster for SUCCEEDED"),
        (f"{RULES}.0.condition.ttlSeconds", 9999999, "workers go first, then the cluster"),
        ("spec.jobTemplate.shutdownAfterJobFinishes", True, "deletionRules exclude"),
    ],
)
def test_a_ray_cron_job_that_the_operator_would_refuse(
    path: str, value: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        kuberay.check(_job(at(path, value), tmp_path, "RayCronJob"))


def test_files_are_written_and_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read(tmp_path)
    result = schedule("job.toml", on="systemd")
    assert [Path(f).name for f in result.files] == ["raysegment-nightly.service", "raysegment-nightly.timer"]
    assert result.next.endswith("T02:00:00+00:00")
    service = Path(result.files[0])
    before = service.read_text()
    assert str(tmp_path / "job.toml") in before
    assert schedule("job.toml", on="systemd") == result  # the same again is no overwriting
    read(tmp_path, JOB.replace('"6h"', '"5h"'))
    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        schedule("job.toml", on="systemd")
    assert service.read_text() == before
    schedule("job.toml", on="systemd", overwrite=True)
    assert service.read_text() != before


def test_a_folder_that_cannot_be_is_a_usage_error(tmp_path: Path) -> None:
    read(tmp_path)
    with pytest.raises(UsageError, match="give another --out"):
        schedule(tmp_path / "job.toml", on="cron", out=tmp_path / "job.toml" / "out")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0 2 * * *", "0 2 31 2 *", "never fires"),
        ('"UTC"', '"Europe/Atlantis"', "is no time zone"),
        ("gpus = 1", "gpu = 1", "the nearest is 'gpus'"),
        ("workers = 8", "", "sees no nodes"),
    ],
)
def test_one_line_and_exit_2_before_anything_is_written(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "job.toml").write_text(JOB.replace(old, new))
    words = ["schedule", str(tmp_path / "job.toml"), "--on", "kubernetes", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_to_do_next(tmp_path: Path) -> None:
    read(tmp_path)
    words = [
        "schedule",
        str(tmp_path / "job.toml"),
        "--on",
        "slurm",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert {Path(f).suffix for f in said["files"]} == {".sbatch", ".scrontab"}
    (apply,) = said["apply"]
    assert apply.startswith(f"scrontab {tmp_path}/out/nightly.scrontab  # it replaces your scrontab")
    wrong = CliRunner().invoke(app, [*words, "--ray-cron-job"])
    assert (wrong.exit_code, "it is for Kubernetes alone" in wrong.stderr) == (2, True)
