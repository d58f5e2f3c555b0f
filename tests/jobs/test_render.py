"""`schedule render`: what KubeRay, Kubernetes, Airflow and the shell make of it."""

import ast
import json
import os
import shlex
import subprocess
import sys
import types
from contextlib import contextmanager
from datetime import datetime

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from jobs.cli import app
from jobs.exits import UsageError
from jobs.schedule.airflow import dag_text
from jobs.schedule.cluster_options import ClusterOptions
from jobs.schedule.command import Command
from jobs.schedule.expression import parse
from jobs.schedule.kuberay import manifests, ray_job
from jobs.schedule.rayjob import Api
from tests.photos import collection

ON_CLUSTER = ["--", "/data/my photos", "--out", "/data/out", "--direction", "up"]
KUBERAY = ["--target", "kuberay", "--image", "example.org/doodl:1", "--pvc", "data:/data"]


@pytest.fixture
def render(monkeypatch):
    """Run `schedule render`: (exit code, stdout or the error)."""
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def run(expression, *arguments):
        result = CliRunner().invoke(app, ["schedule", "render", expression, *arguments])
        return result.exit_code, result.stdout if result.exception is None else result.exception

    return run


def documents(text):
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--gpus", "0", "--cpus", "500m", "--max-workers", "8", "--backoff-limit", "3"],
        ["--service-account", "runner", "--secret", "tokens", "--time-zone", "Europe/Berlin"],
        ["--pvc", "models:/models", "--env", "HF_HOME=/models/100%: {yes}", "--name", "no"],
        ["--deadline-hours", "1.5", "--starting-deadline-seconds", "60", "--ray-version", "2.50"],
    ],
)
def test_every_object_is_valid_in_kubernetes_and_kuberay(render, options):
    schemas = pytest.importorskip("tests.jobs.kubernetes_schemas")
    code, text = render("0 2 * * 1-7", *KUBERAY, *options, *ON_CLUSTER)
    assert code == 0, text
    found = documents(text)
    own_account = "--service-account" not in options
    assert ("ServiceAccount" in found) == own_account
    for document in found.values():
        schemas.check_kind(document)
    job = json.loads(found["ConfigMap"]["data"]["rayjob.json"])
    schemas.check(job, schemas.RAY_JOB, "RayJob")
    # KubeRay wants a RayJob's name, with the five characters appended, within 47.
    assert len(job["metadata"]["generateName"]) + 5 <= 47
    spec = found["CronJob"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["schedule"] == "0 2 * * *"
    assert spec["startingDeadlineSeconds"] > 0
    pod_deadline = spec["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert pod_deadline > job["spec"]["activeDeadlineSeconds"] > 0


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("spec", "concurencyPolicy"), "Forbid", "has no field"),
        (("spec", "concurrencyPolicy"), 3, "is no str"),
        (("spec", "schedule"), None, "None"),
        (("spec", "jobTemplate", "spec", "template", "spec", "containers"), [{}], "name"),
        (("spec", "startingDeadlineSeconds"), "60", "is no int"),
    ],
)
def test_the_schemas_refuse_what_kubernetes_would(render, path, value, said):
    schemas = pytest.importorskip("tests.jobs.kubernetes_schemas")
    cron_job = documents(render("@daily", *KUBERAY, *ON_CLUSTER)[1])["CronJob"]
    node = cron_job
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(AssertionError, match=said):
        schemas.check_kind(cron_job)


def test_the_reduced_rayjob_schema_refuses_unknown_missing_and_mistyped_fields(render):
    schemas = pytest.importorskip("tests.jobs.kubernetes_schemas")
    text = render("@daily", *KUBERAY, *ON_CLUSTER)[1]
    for change, said in (
        (lambda job: job["spec"].update(entryPoint="x"), "no field 'entryPoint'"),
        (lambda job: job["spec"]["rayClusterSpec"].pop("headGroupSpec"), "missing"),
        (lambda job: job["spec"].update(backoffLimit="1"), "is no"),
        (lambda job: job["spec"].update(submissionMode="Http"), "none of"),
        (
            lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"][
                "spec"
            ].update(container=[]),
            "no field 'container'",
        ),
    ):
        job = json.loads(documents(text)["ConfigMap"]["data"]["rayjob.json"])
        change(job)
        with pytest.raises(AssertionError, match=said):
            schemas.check(job, schemas.RAY_JOB, "RayJob")


def test_a_night_starts_from_no_worker_and_runs_the_same_idempotent_command(render):
    found = documents(render("@daily", *KUBERAY, *ON_CLUSTER)[1])
    job = json.loads(found["ConfigMap"]["data"]["rayjob.json"])
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (0, 0, 1)
    assert cluster["enableInTreeAutoscaling"] is True
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert "nvidia.com/gpu" not in head
    assert shlex.split(job["spec"]["entrypoint"]) == [
        "python", "-P", "-m", "jobs.cli", "enhance", "--out=/data/out", "--direction=up",
        "/data/my photos", "--if-running=skip",
    ]  # fmt: skip
    (rule,) = found["Role"]["rules"]
    assert set(rule["verbs"]) == {"create", "get", "list", "delete"}
    assert (rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayjobs"])
    pod = found["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == found["RoleBinding"]["subjects"][0]["name"]
    # What the creating pod calls is what the role allows.
    assert all(callable(getattr(Api, verb)) for verb in rule["verbs"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "kuberay", "--pvc", "data:/data", *ON_CLUSTER], "--image"),
        (["--target", "kuberay", "--image", "x", *ON_CLUSTER], "lies on no volume"),
        ([*KUBERAY, "--", "/data/photos"], "--out"),
        ([*KUBERAY, "--", "/data/../etc/p", "--out", "/data/o"], "lies on no volume"),
        ([*KUBERAY, "--pvc", "a:b", *ON_CLUSTER], "CLAIM:/path"),
        ([*KUBERAY, "--pvc", "A b:/x", *ON_CLUSTER], "no name of a claim"),
        ([*KUBERAY, "--name", "Nightly_Run", *ON_CLUSTER], "no name for Kubernetes"),
        ([*KUBERAY, "--name", "x" * 30, *ON_CLUSTER], "no name for Kubernetes"),
        ([*KUBERAY, "--memory", "lots", *ON_CLUSTER], "--memory"),
        ([*KUBERAY, "--env", "HF_TOKEN=hf_x", *ON_CLUSTER], "secrets"),
        ([*KUBERAY, *ON_CLUSTER, "--prompt", "$(reboot)"], "ray job submit"),
        ([*KUBERAY, *ON_CLUSTER, "--on-finish", "https://x/?token=1"], "may be a token"),
        (["--target", "airflow", *ON_CLUSTER, "--on-finish", "https://u:p@x/"], "password"),
        (["--target", "nomad", *ON_CLUSTER], "--target"),
    ],
)
def test_what_cannot_be_rendered_is_a_usage_error(render, arguments, said):
    code, problem = render("@daily", *arguments)
    assert code != 0
    assert isinstance(problem, UsageError)
    assert said in str(problem)


WORD = st.text(st.sampled_from("aZ09_@%+=:,./- é中"), max_size=12).filter(
    lambda word: word == word.strip()
)


@given(words=st.lists(WORD, min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_an_entrypoints_words_survive_two_shells_and_windows_quoting(words):
    command = Command(tuple(words), "/data/p", "/data/o", {})
    options = ClusterOptions(image="x", volumes=("d:/data",), ray_version="2", python="printf")
    entrypoint = ray_job(command, "n", options)["spec"]["entrypoint"]
    # KubeRay's submitter has a shell split it; `ray job submit` joins the words as Windows does,
    # and the job's shell splits them again.
    split = subprocess.run(
        ["/bin/sh", "-c", f"set -- {entrypoint}; printf '%s\\0' \"$@\""],
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")[:-1]  # fmt: skip
    again = subprocess.run(
        ["/bin/sh", "-c", f"set -- {subprocess.list2cmdline(split)}; printf '%s\\0' \"$@\""],
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")[:-1]  # fmt: skip
    assert again == ["printf", "-P", "-m", "jobs.cli", *words]


def test_yaml_values_keep_what_looks_like_something_else():
    odd = "no: {a} #x *&!|>'\"%@` \\ ~ 0x1 é"
    command = Command(("enhance",), "/data/p", "/data/o", {"ODD": odd, "N": "no", "Z": "0123"})
    options = ClusterOptions(image="x", volumes=("d:/data",), ray_version="2.10")
    from jobs.schedule.render import _yaml

    objects = manifests(command, "no", parse("@daily"), options)
    assert list(yaml.safe_load_all(_yaml(objects))) == objects
    env = ray_job(command, "no", options)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"][
        "spec"
    ]["containers"][0]["env"]
    assert {"name": "ODD", "value": odd} in env


# The parameters that a DAG file may give, of Airflow 2.10 (airflow.models.dag.DAG, airflow.models.
# baseoperator.BaseOperator, airflow.operators.bash.BashOperator) and 3.0 (airflow.sdk.DAG and
# BaseOperator, airflow.providers.standard.operators.bash.BashOperator): those that both have.
DAG_PARAMETERS = {
    "dag_id", "description", "schedule", "start_date", "end_date", "default_args", "params",
    "max_active_tasks", "max_active_runs", "dagrun_timeout", "catchup", "tags", "doc_md",
    "on_success_callback", "on_failure_callback", "render_template_as_native_obj",
}  # fmt: skip
TASK_PARAMETERS = {
    "task_id", "owner", "retries", "retry_delay", "retry_exponential_backoff", "max_retry_delay",
    "depends_on_past", "pool", "queue", "execution_timeout", "trigger_rule", "do_xcom_push",
    "bash_command", "env", "append_env", "output_encoding", "skip_on_exit_code", "cwd",
}  # fmt: skip


@contextmanager
def stand_in_airflow(monkeypatch, *, version):
    """Modules of Airflow's names whose DAG and BashOperator note what they are given."""
    calls = {}

    class DAG:
        def __init__(self, **given):
            calls["dag"] = given

        __enter__ = __exit__ = lambda *_: None

    def operator(**given):
        calls["task"] = given

    names = ["airflow", "airflow.operators", "airflow.providers", "airflow.providers.standard"]
    bash = "airflow.operators.bash"
    if version == 3:
        names.append("airflow.providers.standard.operators")
        bash = "airflow.providers.standard.operators.bash"
    for name in (*names, bash):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["airflow"], "DAG", DAG, raising=False)
    monkeypatch.setattr(sys.modules[bash], "BashOperator", operator, raising=False)
    yield calls


ODD_WORDS = ["{{ x }}", "{% raw %}", "{#", "it's {{", "a.sh", '$HOME `x` "y" \\', "é 中\ttab"]


def odd_dag(**options):
    command = Command(("enhance", *ODD_WORDS, "--if-running=skip"), "/p", "/o", {"A": "{{ ds }}'%"})
    return dag_text(
        command, "night", parse("0 2 * * 7"), deadline_seconds=3600, retries=2,
        python="printf", **options,
    )  # fmt: skip


@pytest.mark.parametrize("version", [2, 3])
def test_the_dag_calls_airflow_as_its_signatures_say(monkeypatch, version):
    text = odd_dag(today=datetime(2026, 11, 21))
    with stand_in_airflow(monkeypatch, version=version) as calls:
        exec(compile(text, "dag.py", "exec"), {})
    assert set(calls["dag"]) <= DAG_PARAMETERS
    assert set(calls["task"]) <= TASK_PARAMETERS
    assert calls["dag"]["schedule"] == "0 2 * * 0"
    assert (calls["dag"]["catchup"], calls["dag"]["max_active_runs"]) == (False, 1)
    assert not calls["task"]["bash_command"].endswith((".sh", ".bash"))


def test_the_dags_command_reaches_the_shell_as_it_is_through_airflows_templates(monkeypatch):
    from jinja2.sandbox import SandboxedEnvironment

    with stand_in_airflow(monkeypatch, version=3) as calls:
        exec(compile(odd_dag(), "dag.py", "exec"), {})
    line = SandboxedEnvironment().from_string(calls["task"]["bash_command"]).render(ds="2026", x=1)
    line = line.replace(" printf -P", " printf '%s\\0' -P", 1)
    assert " env A=" in line
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    words = done.stdout.split("\0")[:-1]
    assert words == ["-P", "-m", "jobs.cli", "enhance", *ODD_WORDS, "--if-running=skip"]
    shown = line.split(" printf")[0] + " sh -c 'printf %s \"$A\"'"
    done = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout == "{{ ds }}'%"


@pytest.mark.slow
def test_airflow_itself_reads_the_dag_and_runs_it(tmp_path):
    python = os.environ.get("DOODL_AIRFLOW_PYTHON")
    if not python:
        pytest.skip("DOODL_AIRFLOW_PYTHON names no interpreter with Airflow installed")
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "night.py").write_text(odd_dag())
    code = (
        "from airflow.models import DagBag\n"
        f"bag = DagBag({str(tmp_path / 'dags')!r}, include_examples=False)\n"
        "dag = bag.dags['doodl-batch-night']\n"
        "line = dag.get_template_env().from_string(dag.tasks[0].bash_command).render()\n"
        "print('FOUND', [bag.import_errors, dag.catchup, dag.max_active_runs, line])\n"
    )
    environment = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        "AIRFLOW_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    (found,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    errors, catchup, runs, line = ast.literal_eval(found.removeprefix("FOUND "))
    assert (errors, catchup, runs) == ({}, False, 1)
    assert shlex.split(line)[-len(ODD_WORDS) - 1 :] == [*ODD_WORDS, "--if-running=skip"]


def test_cron_and_systemd_are_rendered_and_nothing_is_installed(render, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    photos = collection(tmp_path / "photos", 1)
    code, cron = render("0 2 * * *", "--target", "cron", "--", str(photos))
    assert code == 0, cron
    code, systemd = render("0 2 * * *", "--target", "systemd", "--", str(photos))
    assert code == 0, systemd
    command = f"-P -m jobs.cli enhance --out={photos}-doodl {photos} --if-running=skip"
    assert command in cron
    assert command in systemd
    assert "OnCalendar=*-*-* 2:0:00" in systemd
    assert not (tmp_path / "settings").exists()
