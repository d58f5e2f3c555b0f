"""What reaches a terminal: file names are shown, never obeyed."""

import json

import pytest

from jobs import console


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[2Jb.jpg", r"a\x1b[2Jb.jpg"),
        ("a\nerror: b.jpg", r"a\x0aerror: b.jpg"),
        ("a\r\x07\x9bb.jpg", r"a\x0d\x07\x9bb.jpg"),
        ("gpj.\u202ea.exe", r"gpj.\u202ea.exe"),
        ("\udcff.jpg", r"\udcff.jpg"),
        ("Blüten 🌸 [bold]:100:\\", "Blüten 🌸 [bold]:100:\\"),
    ],
)
def test_a_name_is_one_line_that_a_terminal_only_shows(name, shown, capsys, monkeypatch):
    assert console.plain(name) == shown
    console.say(name)
    console.error(name, name)
    console.result(name)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [shown, f"error: {shown}", f"hint: {shown}"]
    assert captured.out.splitlines() == [shown]


def test_tables_and_facts_show_names_as_they_are(capsys):
    console.print_table("", ("photo",), [("[red]:100:\x1b]0;x\x07",)])
    console.print_facts("a\nb", {"[i]photo": ":100:\n"})
    out = capsys.readouterr().out
    assert r"[red]:100:\x1b]0;x\x07" in out
    assert r"a\x0ab" in out
    assert r"[i]photo  :100:\x0a" in out


def test_json_of_a_name_that_is_not_text_is_json(capsys):
    console.print_json({"name": "\udcffé\x1b"})
    assert json.loads(capsys.readouterr().out) == {"name": "\udcffé\x1b"}


def test_only_the_first_failures_are_named(capsys):
    with console.RunProgress() as progress:
        progress.start(500)
        for i in range(500):
            progress.row(f"p{i}.jpg", "failed", "empty")
    err = capsys.readouterr().err
    assert err.count("failed: p") == 20
    assert "counted, not named" in err
    assert "500/500 photos" in err
    assert "500 failed" in err
