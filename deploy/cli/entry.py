"""The command's root: global flags, groups, and how errors reach people.

A `UserError` is one sentence and its remedy on stderr, exit code 1. Anything else is our own mistake: one line, exit
code 70, the traceback only with ``--debug`` (or HEADRACE_DEBUG=1).
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from typing import Annotated

import typer

from deploy.cli import EXIT_INTERRUPTED
from schemas.errors import UserError

EXIT_USER = 1
EXIT_INTERNAL = 70
"""sysexits.h EX_SOFTWARE."""
_OF_FILES = frozenset(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
)
"""Errors of files that whoever runs the command can mend."""
COMMANDS = ("headrace ", "pip ", "kcat ")
"""A remedy that begins with one of these is to be copied, not read."""

app = typer.Typer(
    name="headrace",
    help="Events in, better decisions out, while they happen. Everything passes through Kafka.\n\n"
    "First steps:\n\n"
    "\b\n"  # click's mark: these lines are not to be wrapped
    "    headrace demo                # see it learn, on a broker of its own\n"
    "    headrace up headrace.toml    # everything for development in one terminal\n"
    '    headrace ask \'{"text": "my card is lost"}\'  # a decision from the shell',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        print(f"headrace {version('headrace')}")
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.", envvar="HEADRACE_DEBUG")] = False,
) -> None:
    """Keep global flags."""
    os.environ["HEADRACE_DEBUG"] = "1" if debug else ""


for _group in (
    "broker",
    "topics",
    "keys",
    "apply",
    "running",
    "exchange",
    "status",
    "dead_letters",
    "lint",
    "audit",
    "explain",
    "replay",
    "torture",
    "demo",
):
    importlib.import_module(f"deploy.cli.{_group}").register(app)


def run(arguments: list[str] | None = None) -> int:
    """The exit code of one command line; everything wrong is told on stderr."""
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:  # also what was printed long ago: it is buffered
        _forget_output()
        return EXIT_USER if isinstance(error, BrokenPipeError) else _tell_of_file(error)
    return code


def _run(arguments: list[str] | None) -> int:
    try:
        app(arguments)
        return 0
    except SystemExit as ended:  # typer's own errors (an unknown flag) are told by then
        return ended.code if isinstance(ended.code, int) else 0
    except UserError as error:
        return _tell(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `headrace … | head`
        _forget_output()
        return EXIT_USER
    except OSError as error:
        return _tell_of_file(error) if error.errno in _OF_FILES else _tell_of_mistake(error)
    except Exception as error:
        return _tell_of_mistake(error)


def _tell(error: UserError) -> int:
    _traceback_if_asked()
    print(f"headrace: {error.message}.\n  {_sentence(error.remedy)}", file=sys.stderr)
    return EXIT_USER


def _tell_of_file(error: OSError) -> int:
    """A disk that is full or a place that is not ours, where nobody knew better what to say."""
    if not error.filename:
        _forget_output()
    what = f"cannot use {error.filename}" if error.filename else "cannot write the output"
    return _tell(UserError(f"{what}: {error.strerror}", "make room there, or name another place"))


def _tell_of_mistake(error: Exception) -> int:
    _traceback_if_asked()
    text = " ".join(str(error).split()) or "no message"
    print(
        f"headrace: a mistake of headrace's own: {type(error).__name__}: {text}.\n"
        "  Run it again with `headrace --debug …` and report what it shows.",
        file=sys.stderr,
    )
    return EXIT_INTERNAL


def _forget_output() -> None:
    """Nobody takes what is left to print: Python must not try again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(text: str) -> str:
    """Capital first, full stop last; commands inside stay as they are, one at the start too.

    >>> _sentence("pip install '.[learner]'")
    "pip install '.[learner]'"
    """
    if text.startswith(COMMANDS):
        return text
    shown = text[:1].upper() + text[1:]
    return shown if shown.endswith((".", "`")) else f"{shown}."


def _traceback_if_asked() -> None:
    if os.environ.get("HEADRACE_DEBUG"):
        traceback.print_exc()
