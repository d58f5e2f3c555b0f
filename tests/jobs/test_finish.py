"""`--on-finish`: what leaves the machine, and that it never changes how the run ended."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs import enhance, exits, finish
from jobs.exits import UsageError
from jobs.submit import Place, Where
from pipeline.errors import DiskFullError
from pipeline.plan import RunChoice
from pipeline.run import RunSummary, run_job
from tests.photos import collection, jpeg
from tests.pipeline.conftest import spec_of

SUMMARY = RunSummary(
    "/home/me/my photos-doodl", "20261121T020000Z-abc", {"ok": 2, "failed": 1, "pending": 0},
    computed=3, statuses={"ok": 2, "failed": 1}, seconds=1.25, exit_code=3,
    stopped_by="stopped in /home/me",
)  # fmt: skip


@pytest.fixture
def hook(monkeypatch):
    """A web server that answers as told; yields (address, answers to give, bodies got)."""
    monkeypatch.setattr(finish, "_RETRY_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(finish, "URL_SECONDS", 0.5)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    answers, bodies, release = [], [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            answer = answers.pop(0) if answers else 200
            if answer == "silence":
                release.wait(5)
                return
            self.send_response(answer)
            if answer == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        log_message = lambda *_: None  # noqa: E731

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/night?key=hushhush", answers, bodies
    release.set()
    server.shutdown()
    server.server_close()


def test_an_address_gets_counts_and_no_path(hook):
    address, _, bodies = hook
    assert finish.tell(address, SUMMARY, "/home/me/report/index.html") is None
    ((path, body),) = bodies
    assert path == "/night?key=hushhush"
    told = json.loads(body)
    assert told["counts"] == SUMMARY.counts
    assert (told["exit_code"], told["end"], told["computed"]) == (3, "rows failed", 3)
    assert told["run_id"] == SUMMARY.run_id
    assert b"/" not in body
    assert b"home" not in body


@pytest.mark.parametrize(
    ("answers", "calls", "works"),
    [
        ([500], 2, True),
        ([500, 503], 2, False),
        (["silence"], 2, True),
        (["silence", "silence"], 2, False),
        ([302, 302], 2, False),
        ([204], 1, True),
    ],
)
def test_an_address_is_tried_twice_never_redirected_and_its_token_never_shown(
    hook, answers, calls, works
):
    address, to_give, bodies = hook
    to_give += answers
    problem = finish.tell(address, SUMMARY)
    assert (problem is None) == works
    assert [path for path, _ in bodies] == ["/night?key=hushhush"] * calls
    assert "hushhush" not in str(problem)


def test_a_dead_address_is_one_line_without_its_token(monkeypatch):
    monkeypatch.setattr(finish, "_RETRY_AFTER_SECONDS", 0.01)
    problem = finish.tell("http://me:hush@127.0.0.1:9/x?token=hush", SUMMARY)
    assert problem is not None
    assert "hush" not in problem
    assert len(problem.splitlines()) == 1


def test_a_command_gets_the_summary_with_its_paths_on_its_input(tmp_path):
    got = tmp_path / "got it"
    command = (
        f"{sys.executable} -c 'import sys; open(sys.argv[1],\"w\").write(sys.stdin.read())' '{got}'"
    )
    assert finish.tell(command, SUMMARY, "r/index.html") is None
    told = json.loads(got.read_text())
    assert told["out"] == SUMMARY.out
    assert (told["report"], told["stopped_by"]) == ("r/index.html", SUMMARY.stopped_by)


def test_a_command_that_fails_hangs_or_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(finish, "COMMAND_SECONDS", 0.2)
    for command, said in (("false", "exit 1"), ("sleep 9", "no end"), ("/no/such", "No such file")):
        problem = finish.tell(command, SUMMARY)
        assert said in str(problem)
        assert len(str(problem).splitlines()) == 1


@pytest.mark.parametrize(
    "target", ["ftp://x/y", "file:///etc/passwd", "http://", "https://x/ y", "", "  ", "'open"]
)
def test_what_is_neither_command_nor_address_is_refused_before_the_run(target):
    with pytest.raises(UsageError, match="--on-finish"):
        finish.check_target(target)


def test_commands_that_name_an_address_are_commands():
    finish.check_target("curl -d @- https://example.org/x")
    finish.check_target("https://example.org/x?y=1")
    finish.check_target(None)


HERE = Place("inline", "in this process")


def test_the_runs_exit_code_stands_whatever_becomes_of_the_call(tmp_path, capsys):
    photos = collection(tmp_path / "photos", 1)
    (photos / "bad.jpg").write_bytes(jpeg(1)[:300])
    code = enhance.run_spec(
        spec_of(photos), RunChoice(), [], HERE, Where(),
        report=False, on_finish="false", as_json=True,
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert code == exits.ROWS_FAILED
    assert "--on-finish false: exit 1; the run itself stands" in err
    assert json.loads(out)["exit_code"] == exits.ROWS_FAILED  # stdout is JSON and nothing else


@pytest.mark.parametrize(("error", "told"), [(DiskFullError("full"), [7]), (KeyError("x"), [1])])
def test_a_run_that_could_not_begin_is_told_too(tmp_path, monkeypatch, error, told):
    def broken(*_):
        raise error

    heard = []
    monkeypatch.setattr(enhance, "run_job", broken)
    monkeypatch.setattr(enhance, "tell", lambda _, summary, __: heard.append(summary.exit_code))
    spec = spec_of(collection(tmp_path / "photos", 1))
    with pytest.raises(type(error)):
        enhance.run_spec(
            spec, RunChoice(), [], HERE, Where(), report=False, on_finish="x", as_json=True
        )
    assert heard == told


def test_a_run_that_ran_elsewhere_is_summed_up_from_its_folder(tmp_path):
    photos = collection(tmp_path / "photos", 2)
    (photos / "bad.jpg").write_bytes(b"x")
    spec = spec_of(photos)
    here = run_job(spec)
    there = finish.summary_of(spec.out, here.exit_code)
    assert finish.counts_only(there) == finish.counts_only(here)


def test_a_run_that_ended_before_it_made_its_folder_has_no_counts(tmp_path):
    summary = finish.summary_of(str(tmp_path / "never-made"), 6)
    assert (summary.exit_code, dict(summary.counts), summary.computed) == (6, {}, 0)


def test_a_skipped_run_tells_nobody(tmp_path, monkeypatch):
    from manifests.commits import OutputFolder
    from manifests.errors import OutputLockedError

    monkeypatch.setattr(enhance, "tell", lambda *_: pytest.fail("somebody was told"))
    spec = spec_of(collection(tmp_path / "photos", 1))
    with OutputFolder(spec.out).lock(), pytest.raises(OutputLockedError):
        enhance.run_spec(
            spec, RunChoice(if_running="skip"), [], HERE, Where(),
            report=False, on_finish="x", as_json=True,
        )  # fmt: skip
