"""Commands under ``torchrun`` or ``accelerate launch``, which start every command in several processes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from clipadapt.core.api.errors import EXIT_USER_ERROR, ConfigError
from clipadapt.core.api.processes import LostProcessError, launched
from clipadapt.core.cli.output import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clipadapt.core.api.processes import Launch, Team
    from clipadapt.core.api.tracks import Track

_FAILED: Final = 1


def refuse_launcher(program: str, command: str) -> None:
    """End a command that several processes cannot do together; only the first of them says why.

    Raises:
        ConfigError: In the main process.
        typer.Exit: In the others.
    """
    launch = launched()
    if launch is None:
        return
    if launch.rank:
        raise typer.Exit(EXIT_USER_ERROR)
    raise ConfigError(
        f"'{program} {command}' runs in one process, but the launcher started {launch.count}",
        hint=f"start it without torchrun or accelerate launch; to do one fit per GPU, use '{program} bench SWEEP "
        "--executor ray'",
    )


@contextlib.contextmanager
def main_process(track: Track) -> Iterator[Team | None]:
    """Run a block in the main process of a launcher, while the others take part in its fits and then end.

    Yields:
        The processes, or None if this one is alone.

    Raises:
        ConfigError: If no method of the track can be fitted by several processes.
        typer.Exit: In the other processes, and after an error that another process has printed.
    """
    launch = launched()
    if launch is None:
        yield None
        return
    if track.join is None:
        refuse_launcher(track.program, "run")
    assert track.join is not None
    team = track.join()
    with _one_message(team):
        if launch.rank:
            _follow(team)
            raise typer.Exit
        try:
            yield team
        finally:
            team.send(None)
    team.leave()


def _follow(team: Team) -> None:
    from clipadapt.core.runs.follow import follow

    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  closed at the end of the process
    with contextlib.redirect_stdout(nowhere):
        follow(team)
    team.leave()


@contextlib.contextmanager
def _one_message(team: Team) -> Iterator[None]:
    """Let only the process that fails first print its error."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:  # the launcher ends all processes if one fails
        if team.launch.rank or not team.fails_first():
            raise typer.Exit(_FAILED) from None
        raise
    except Exception as err:
        if not team.fails_first():
            raise typer.Exit(_FAILED) from None
        _say_rank(team.launch, err)
        raise


def _say_rank(launch: Launch, err: Exception) -> None:
    """Say which process an error comes from, unless it is the main one."""
    if launch.rank and not isinstance(err, LostProcessError):
        say(f"rank {launch.rank} of {launch.count} failed:", err=True)
