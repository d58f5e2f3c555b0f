"""Clusters that do not answer, do not let us in, or do not fit: one line, soon, and no Ray."""

import importlib.metadata
import socket
import subprocess
import sys

import pytest

from pipeline.preflight import (
    ClusterError,
    check_address,
    find_cluster,
    read_token,
    within,
    without_secrets,
)
from tests.clusters import free_ports
from tests.dashboards import fake_dashboard

RAY = importlib.metadata.version("ray")
PYTHON = sys.version.split()[0]


@pytest.fixture(autouse=True)
def no_token(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no-token"))


def problem_at(address, **options):
    with pytest.raises(ClusterError) as caught:
        find_cluster(address, **options)
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)
    return caught.value.problem, str(caught.value)


def test_a_cluster_that_fits_is_found_by_url_and_by_host_and_port():
    with fake_dashboard(RAY, PYTHON) as (url, _):
        by_url = find_cluster(url + "/")
        by_port = find_cluster(url.removeprefix("http://"))
    assert by_url == by_port
    assert (by_url.url, by_url.ray_version, by_url.python_version) == (url, RAY, PYTHON)
    assert (by_url.token, by_url.session) == (None, "session_1")


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}", "[::1]:{}"])
def test_a_dead_address_is_named(form):
    address = form.format(free_ports(1)[0])
    problem, message = problem_at(address)
    assert problem == "address"
    assert f"no Ray cluster answers at {address}" in message
    assert "unset RAY_ADDRESS" in message


def test_a_host_that_does_not_exist_is_named():
    problem, message = problem_at("http://no-such-host.invalid:8265")
    assert (problem, "no-such-host.invalid" in message) == ("address", True)


def test_one_that_accepts_and_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr("pipeline.preflight.PREFLIGHT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        problem, _ = problem_at(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert problem == "address"


def test_a_call_without_a_time_limit_of_its_own_gets_one():
    from threading import Event

    with pytest.raises(ClusterError, match=r"no answer within 0\.1 s"):
        within(0.1, "http://h:1", Event().wait)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[]", b"{}", b"\xff"])
def test_a_server_that_is_no_ray_is_named(body):
    with fake_dashboard(RAY, body=body) as (url, _):
        problem, message = problem_at(url)
    assert (problem, "is no Ray" in message) == ("address", True)


def test_another_minor_version_of_ray_is_named_with_both():
    with fake_dashboard("2.9.3", PYTHON) as (url, _):
        problem, message = problem_at(url)
        assert find_cluster(url, check_versions=False).ray_version == "2.9.3"
    assert problem == "version"
    assert "runs Ray 2.9.3" in message
    assert f"this machine Ray {RAY}" in message


def test_another_minor_version_of_python_is_named_with_both():
    with fake_dashboard(RAY, "3.9.18") as (url, _):
        problem, message = problem_at(url)
    assert problem == "version"
    assert "runs Python 3.9.18" in message
    assert f"this machine Python {PYTHON}" in message


def test_a_patch_version_and_a_silent_cluster_fit():
    patch = ".".join([*RAY.split(".")[:2], "99"])
    with fake_dashboard(patch) as (url, _):
        assert find_cluster(url).python_version == ""


def test_a_token_is_found_where_rays_client_finds_it(tmp_path, monkeypatch):
    assert read_token() is None
    (tmp_path / "token").write_text("from a file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert read_token() == "from a file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from the environment")
    assert read_token() == "from the environment"


def test_the_right_token_opens_and_a_wrong_or_absent_one_is_named(monkeypatch):
    with fake_dashboard(RAY, PYTHON, token="s3cret") as (url, _):
        problem, message = problem_at(url)
        assert (problem, "asks for a token" in message) == ("token", True)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wr0ng")
        problem, message = problem_at(url)
        assert (problem, "refuses the token of RAY_AUTH_TOKEN" in message) == ("token", True)
        assert "wr0ng" not in message
        monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
        cluster = find_cluster(url)
    assert cluster.headers == {"Authorization": "Bearer s3cret"}
    assert "s3cret" not in repr(cluster)


def test_a_token_is_shown_to_nobody_who_does_not_ask_and_follows_no_redirect(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    with fake_dashboard(RAY, PYTHON) as (url, seen):
        find_cluster(url)
        with fake_dashboard(RAY, redirect=url) as (elsewhere, _):
            assert problem_at(elsewhere)[0] == "address"
    assert {header for _, header in seen} == {None}


def test_a_cluster_named_by_a_file_alone_gets_no_token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    with fake_dashboard(RAY, PYTHON, token="s3cret") as (url, seen):
        problem, message = problem_at(url, with_token=False)
    assert (problem, "--address or RAY_ADDRESS" in message) == ("token", True)
    assert {header for _, header in seen} == {None}


@pytest.mark.parametrize(
    "address", ["", "h", "h:port", "ftp://h:1", "module://h", "http://", "ray://h:10001",
                "http://me:secret@h:1", "http://h:1/?sig=secret", "http://h:1/#secret", "h:1\n"],
)  # fmt: skip
def test_what_takes_no_jobs_is_refused_without_its_secrets(address):
    with pytest.raises(ValueError, match=r"address|Ray Client") as caught:
        check_address(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["auto", "h:6379", "[::1]:6379", "https://h/ray/", "http://h"])
def test_addresses_of_clusters_are_taken(address):
    check_address(address)


def test_secrets_are_taken_out_of_addresses():
    assert without_secrets("http://u:p@h:1/a?sig=x#y") == "http://…@h:1/a"


def test_asking_a_job_server_imports_no_ray():
    with fake_dashboard(RAY, PYTHON) as (url, _):
        code = (
            "import sys; from pipeline.preflight import find_cluster; "
            f"find_cluster({url!r}); print('ray' in sys.modules)"
        )
        probe = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (probe.returncode, probe.stdout.strip()) == (0, "False"), probe.stderr
