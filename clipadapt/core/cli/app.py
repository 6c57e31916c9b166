"""The command line of a package: the shared commands, built for one track."""

from __future__ import annotations

from typing import Annotated

import typer

from clipadapt.core.api.registry import tracks
from clipadapt.core.cli import (
    app_command,
    bench,
    cache,
    compare,
    doctor,
    encode,
    export,
    ls,
    push,
    report,
    run,
    table,
    validate,
)
from clipadapt.core.cli.launcher import refuse_launcher
from clipadapt.core.cli.output import example, say


def build_app(track: str, about: str) -> typer.Typer:
    """Return an app with the commands that both packages share.

    Args:
        track: Name of the track; names of methods may omit it.
        about: First line of ``--help``.
    """
    own = tracks()[track]
    program, names = own.program, own.examples
    data = f"--dataset {names.dataset}"
    model = f"--model {names.model} " if names.needs_model else ""
    app = typer.Typer(
        name=program,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"], "obj": own},
    )
    app.callback(help=about)(options)
    for command, arguments in (
        (run.run, f"{names.recipe} {model}{data} --seeds 1,2,3"),
        (bench.bench, f"{names.sweep} --dry-run"),
        (encode.encode, f"--model {names.model} {data} --limit 64 --json"),
        (export.export, f"RUN_DIR --format {names.export_format} --output PATH"),
        (push.push, "RUN_DIR ORG/NAME --private"),
        (app_command.app, "RUN_DIR --port 8000"),
        (table.table, "runs --format latex"),
        (compare.compare, "runs other-runs"),
        (report.report, "runs --output report.html"),
        (validate.validate, f"{names.recipe} {data}"),
        (ls.ls, "methods"),
        (doctor.doctor, f"--dataset {names.dataset}"),
    ):
        name = command.__name__
        app.command(name, epilog=example(f"{program} {name} {arguments}"))(command)
    app.add_typer(cache.build(program), name="cache")
    return app


def _show_version(context: typer.Context, asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        program = context.obj.program if context.obj else "clipadapt"
        say(f"{program} {version('clipadapt')}")
        raise typer.Exit


def options(
    context: typer.Context,
    debug: Annotated[  # noqa: ARG001  read by run_app
        bool, typer.Option("--debug", help="Show the traceback of a user error.")
    ] = False,
    version: Annotated[  # noqa: ARG001  its callback does the work
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of every command."""
    command = context.invoked_subcommand or ""
    if command != run.run.__name__:
        refuse_launcher(context.obj.program, command)
