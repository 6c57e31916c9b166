"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.user_input import user_path

if TYPE_CHECKING:
    from clipadapt.core.api.tracks import Track

DEFAULT_OUT: Final = Path("runs")

ConfigsArgument = Annotated[
    list[str], typer.Argument(metavar="CONFIG...", help="Recipe names or files, merged.")
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, for example data.shots=4."
    ),
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out", metavar="DIR", help="Folder of the records.", show_default=True, parser=user_path
    ),
]
RunDirArgument = Annotated[
    Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.", parser=user_path)
]
RecordsArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of the records.", parser=user_path)
]
TopOption = Annotated[int, typer.Option("--top", help="Classes to show for each input.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def track_of(context: typer.Context) -> Track:
    """Return the track that a command belongs to."""
    track: Track = context.obj
    return track


def check_top(top: int) -> None:
    """Check ``--top``.

    Raises:
        ConfigError: If it is below 1.
    """
    if top < 1:
        raise ConfigError(
            f"--top must be at least 1 (got {top})", hint="omit it for the best class only"
        )
