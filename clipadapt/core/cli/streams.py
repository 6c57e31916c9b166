"""The process around a command: exit codes, standard streams, colours and signals."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from clipadapt.core.api.errors import (
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    ClipAdaptError,
    Interrupted,
    RecordError,
)
from clipadapt.core.api.user_input import visible
from clipadapt.core.cli.output import say
from clipadapt.core.cli.terminal import no_colour
from clipadapt.core.files.folders import refusal


def run_app(app: Callable[..., Any], arguments: Sequence[str] | None = None) -> None:
    """Run ``app``; a user error is one message on stderr and exit code 2."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]  # accepted anywhere, not only before the command
    if arguments is None:
        guard_streams()
    if no_colour():
        import typer.rich_utils

        typer.rich_utils.COLOR_SYSTEM = None  # for help and usage errors
    _treat_termination_as_interrupt()
    try:
        app(args=args)
    except ClipAdaptError as err:
        if debug:
            raise
        _end(str(err))
    except OSError as err:  # no permission, no space, a broken disk
        if debug or err.errno is None:
            raise
        where = f"'{err.filename}': " if err.filename else ""
        _end(str(refusal(err) or f"{where}{err.strerror or err}"))
    except MemoryError as err:
        if debug:
            raise
        _end(f"there is not enough memory: {err or 'all of it is in use'}")
    except SystemExit as end:
        if end.code == EXIT_USER_ERROR:
            _say_next_step(end.__context__)
        if end.code == EXIT_INTERRUPTED:
            say(_what_is_kept(end), err=True)
        try:
            sys.stdout.flush()
        except ClipAdaptError as err:
            _end(str(err))
        raise


def _say_next_step(error: BaseException | None) -> None:
    """Print what to type after a usage error, which Typer has printed and which is what made it exit."""
    context = getattr(error, "ctx", None)
    if context is None:
        return
    if example := context.command.epilog:
        say(example, err=True)
    elif option := getattr(error, "option_name", None):
        command = f"{context.command_path} COMMAND {option}"
        say(f"Options come after the command that they belong to: {command} ...", err=True)


def _what_is_kept(end: BaseException) -> str:
    """Return the message after Ctrl-C, a command's own one or a general one; Typer has made it an exit code."""
    error: BaseException | None = end
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return str(error or "interrupted; complete runs are kept, and the same command resumes")


def _end(message: str) -> None:
    """Print an error with escapes in place of control characters, and exit."""
    text = visible(f"error: {message}", lines=True)
    typer.echo(text if no_colour() else typer.style(text, fg=typer.colors.RED), err=True)
    sys.exit(EXIT_USER_ERROR)


def guard_streams() -> None:
    """Discard output to a closed stream or to a pipe without a reader.

    The run then continues, and its exit code does not depend on the stream. Characters that the console's encoding
    lacks are escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed: a file opened later would take its number and receive the output
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
        elif name != "stdin":
            old = getattr(sys, name)
            raw = _Output(number, "w", closefd=False)
            setattr(
                sys,
                name,
                io.TextIOWrapper(
                    io.BufferedWriter(raw),
                    encoding=old.encoding,
                    errors="backslashreplace",
                    # Under PYTHONUNBUFFERED the old stream passes everything on and is not line-buffered.
                    line_buffering=old.line_buffering or old.write_through,
                ),
            )


class _Output(io.FileIO):
    """A standard stream whose reader may disappear."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as err:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if self.fileno() == 1 and not isinstance(err, BrokenPipeError):
                raise RecordError(
                    f"cannot write to the standard output: {err.strerror}",
                    hint="write it to a disk with free space",
                ) from None
            return len(data)


def _treat_termination_as_interrupt() -> None:
    """Handle SIGTERM and SIGHUP like Ctrl-C, so that temporary files are removed."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows lacks some
        # A signal that is ignored, as under nohup, stays ignored; a thread cannot set handlers.
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):
                signal.signal(number, signal.default_int_handler)
