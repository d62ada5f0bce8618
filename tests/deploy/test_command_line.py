"""The `headrace` command: errors are sentences, help teaches, nothing shows a traceback unless asked."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer.main

from deploy import outputs
from deploy.cli.entry import app, run
from learner.environment import configure
from schemas.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("apply", "worker", "learn", "up", "ask", "tell", "status", "lint", "audit", "demo")
NOWHERE = ["--bootstrap", "127.0.0.1:1"]


def _broken(tmp_path: Path) -> Path:
    file = tmp_path / "headrace.toml"
    file.write_text('[namespace]\nname = "n"\npartitions = "four"\n')
    return file


def _helps(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(words, what its docstring says) of every command."""
    command = command or typer.main.get_command(app)
    if not hasattr(command, "list_commands"):
        yield path, command.help or ""
        return
    context = command.context_class(command, info_name="headrace")
    for name in command.list_commands(context):
        yield from _helps(command.get_command(context, name), (*path, name))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0

    shown = capsys.readouterr().out
    assert "Example" in shown
    assert f"headrace {command}" in shown or f"| headrace {command}" in shown


def test_the_key_file_that_the_example_names_is_the_one_that_is_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["keys", "create", "--help"]) == 0
    named = {word.strip("│ ") for word in capsys.readouterr().out.split() if ".pem" in word}

    assert run(["keys", "create", "--folder", str(tmp_path / "keys")]) == 0

    made = {path.name for path in (tmp_path / "keys").iterdir()}
    assert {Path(word.partition("=")[2]).name for word in named} == {"headrace.public.pem"}
    assert "headrace.public.pem" in made


def test_every_example_line_of_the_help_stands_whole_so_that_it_can_be_copied(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    run(["--help"])
    shown = capsys.readouterr().out
    assert "    headrace up headrace.toml    # everything for development in one terminal\n" in shown
    assert """    headrace ask '{"text": "my card is lost"}'  # a decision from the shell\n""" in shown

    for path, text in _helps():
        run([*path, "--help"])
        shown = capsys.readouterr().out
        for line in text.splitlines():
            if line.startswith("    "):
                assert f"{line}\n" in shown, path


@pytest.mark.parametrize(
    "arguments",
    [["apply"], ["up"], ["lint"], ["lint", str(ROOT / "README.md"), "--project"]],
    ids=" ".join,
)
def test_a_file_that_may_not_be_read_is_told_in_a_sentence(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "headrace.toml"
    file.touch()
    # By hand: root, who may run these tests, may read everything.
    plain_access, plain_open = os.access, io.open

    def access(path: Any, mode: int) -> bool:
        return str(path) != str(file) and plain_access(path, mode)

    def opened(path: Any, *rest: Any, **more: Any) -> Any:
        if str(path) == str(file):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return plain_open(path, *rest, **more)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(io, "open", opened)

    assert run([*arguments, str(file)]) == 1

    said = capsys.readouterr().err
    assert f"{file} cannot be read: Permission denied" in said
    assert "Usage" not in said


@pytest.mark.parametrize("group", ["broker", "topics", "keys"])
def test_a_group_without_a_command_shows_what_there_is(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    run([group])

    captured = capsys.readouterr()
    assert "Commands" in captured.out + captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--once", *NOWHERE],
        ["audit", *NOWHERE],
        ["ask", "{}", *NOWHERE],
        ["tell", "some-decision", *NOWHERE],
        ["topics", "check", "--namespace", "n", *NOWHERE],
        ["worker", "join", *NOWHERE],
        ["worker", "decide", "--insecure-dev", *NOWHERE],
        ["broker", "status", *NOWHERE],
    ],
)
def test_a_missing_broker_is_one_line_and_how_to_start_one(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    code = run(arguments)

    said = capsys.readouterr().err
    assert code == 1
    assert "no Kafka broker answers at 127.0.0.1:1" in said
    assert "headrace broker start" in said
    assert "Traceback" not in said


def test_a_wrong_key_in_the_file_is_named_with_its_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["apply", str(_broken(tmp_path)), *NOWHERE]) == 1

    said = capsys.readouterr().err
    assert "partitions" in said
    assert "Traceback" not in said


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["apply", str(tmp_path / "nothing.toml")]) == 1
    assert "nothing.toml" in capsys.readouterr().err


def test_an_unknown_role_is_told_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["worker", "decode"]) == 1
    assert "ingest, decide, join" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"headrace {version('headrace')}\n"


def test_up_names_its_own_flag_for_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    file = str(ROOT / "examples" / "support" / "headrace.toml")

    assert run(["up", file, "--port", "0", "--state-dir", str(tmp_path / "file" / "state")]) == 1

    assert "--state-dir" in capsys.readouterr().err


def test_one_metrics_port_is_refused_for_two_processes_wherever_it_is_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["worker", "--metrics-port", "9401"]) == 1
    assert "9401 is one metrics port" in capsys.readouterr().err
    monkeypatch.setenv("HEADRACE_METRICS_PORT", "9400")
    assert run(["worker", "ingest", "decide", "join"]) == 1
    assert "9400 is one metrics port" in capsys.readouterr().err


def test_the_traceback_is_shown_only_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_DEBUG", "")  # --debug sets it for the processes it starts; undone at the end

    assert run(["--debug", "apply", str(_broken(tmp_path))]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_our_own_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr("deploy.lint.lint", broken)
    (tmp_path / "events.jsonl").write_text("{}\n")
    project = str(ROOT / "examples" / "support" / "headrace.toml")

    code = run(["lint", str(tmp_path / "events.jsonl"), "--project", project])

    said = capsys.readouterr().err
    assert code == 70
    assert "ZeroDivisionError: deep inside" in said
    assert "Traceback" not in said


def test_a_command_that_is_the_remedy_can_be_copied(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("learner.environment.pin", lambda _: None)
    monkeypatch.setattr("learner.__main__.main", lambda settings: configure(1, "cpu"))

    assert run(["learn"]) == 1

    assert "Run `pip install '.[learner]'` in" in capsys.readouterr().err


def test_keys_are_made_once_and_the_private_one_is_for_its_owner_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["keys", "create", "--folder", str(tmp_path / "keys")]) == 0
    private = tmp_path / "keys" / "headrace.private.pem"
    assert private.stat().st_mode & 0o077 == 0
    before = private.read_bytes()

    assert run(["keys", "create", "--folder", str(tmp_path / "keys")]) == 1

    assert private.read_bytes() == before
    assert "there already" in capsys.readouterr().err


def test_a_demo_that_cannot_write_its_report_says_so_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")

    assert run(["demo", "--out", str(tmp_path / "file" / "below")]) == 1
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["learn"], ["--debug", "replay", "--to", "1"]], ids=" ".join)
def test_what_computes_starts_again_under_the_pins_before_anything_is_loaded(words: list[str]) -> None:
    program = (
        "import os, sys\n"
        "def again(program, words, environment):\n"
        "    print(environment['HEADRACE_PINNED'], 'numpy' in sys.modules, 'typer' in sys.modules, flush=True)\n"
        "    os._exit(0)\n"
        "os.execve = again\n"
        "from deploy.cli import main\n"
        "main()\n"
    )
    bare = {name: value for name, value in os.environ.items() if name not in ("HEADRACE_PINNED", "HEADRACE_THREADS")}
    for threads in ("", "3"):
        environment = bare | ({"HEADRACE_THREADS": threads} if threads else {})
        done = subprocess.run([sys.executable, "-c", program, *words], env=environment, capture_output=True, check=True)
        assert done.stdout.decode().split() == [threads or "1", "False", "False"]


@pytest.mark.parametrize("flags", [["--namespace", "other"], ["--partitions", "99"]])
def test_flags_that_contradict_the_file_are_not_passed_over(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(ROOT / "examples" / "support" / "headrace.toml")
    for command in ("apply", "check"):
        assert run(["topics", command, file, *flags]) == 1
        assert f"{flags[0]} {flags[1]}, but {file} says" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["demo", "--headless", "--out", "{}", "--folder", "{}/file/state"], "the folder of state and logs"),
        (["torture", "--out", "{}/file/report"], "the folder of history and report"),
        (["torture", "--out", "{}", "--folder", "{}/file/state"], "the folder of state and logs"),
        (["replay", "--to", "1", "--out", "{}/file/weights"], "the folder of the snapshot"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_any_work(words: list[str], what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = subprocess.run(
        [sys.executable, "-m", "deploy", *(word.format(tmp_path) for word in words)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"headrace: cannot write {what} {tmp_path}/file")
    assert done.stderr.count("\n") == 2


def test_an_output_that_takes_no_more_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "deploy", "broker", "start", "--help"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "headrace: cannot write the output: No space left on device.",
        "  Make room there, or name another place.",
    ]


def test_a_report_of_an_earlier_run_is_not_left_to_look_like_this_ones(tmp_path: Path) -> None:
    (tmp_path / "demo-report.json").write_text("{}")
    outputs.clear(tmp_path, ("demo-report.json", "demo-report.png"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    outputs.write_whole(tmp_path / "weights", b"12", "--out")
    assert (tmp_path / "weights").read_bytes() == b"12"
    with pytest.raises(UserError, match="File name too long"):
        outputs.write_whole(tmp_path / ("n" * 300), b"12", "--out")
    assert [each.name for each in tmp_path.iterdir()] == ["weights"]
