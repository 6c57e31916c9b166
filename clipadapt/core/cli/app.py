"""The command line both packages share: commands parse, call the library and print."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipadapt.core.api.errors import (
    EXIT_DEFECT,
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    ClipAdaptError,
    ConfigError,
    RecordError,
)
from clipadapt.core.api.registry import tracks
from clipadapt.core.api.user_input import user_path, visible
from clipadapt.core.cli.progress import no_colour
from clipadapt.core.files.folders import refusal

if TYPE_CHECKING:
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.runs.inference import LoadedRun
    from clipadapt.core.runs.schedule import Executor

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
TopOption = Annotated[int, typer.Option("--top", help="Classes to name of each input.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
DEFAULT_OUT = Path("runs")


class Kind(StrEnum):
    """What ``ls`` lists."""

    methods = "methods"
    datasets = "datasets"
    models = "models"
    configs = "configs"
    sweeps = "sweeps"
    protocols = "protocols"


class ExecutorName(StrEnum):
    """Where a sweep's runs are done."""

    local = "local"
    ray = "ray"


class TableFormat(StrEnum):
    """How ``table`` prints."""

    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    html = "html"


def build_app(track: str, program: str, about: str) -> typer.Typer:
    """Build the commands that both packages have.

    Args:
        track: ``clip`` or ``text``; names may lack its prefix.
        program: Name of the console script.
        about: First line of ``--help``.
    """
    app = typer.Typer(
        name=program,
        help=about,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def options(
        debug: Annotated[
            bool, typer.Option("--debug", help="Show the traceback of a user error.")
        ] = False,
    ) -> None:
        """Options of every command."""

    options.__doc__ = about
    names = tracks()[track].examples
    example_data, example_sweep, example_format = names.dataset, names.sweep, names.export_format
    example_model = f" --set model.name={names.model}" if names.needs_model else ""
    example = names.recipe

    @app.command(
        "run",
        epilog=_example(
            f"{program} run {example} --set data.name={example_data}{example_model} --json"
        ),
    )
    def run(
        configs: Annotated[
            list[str], typer.Argument(metavar="CONFIG...", help="Recipe names or files, merged.")
        ],
        settings: SettingOption = None,
        out: OutOption = DEFAULT_OUT,
        as_json: JsonOption = False,
    ) -> None:
        """Fit a method, evaluate it and write one record per seed; complete runs are skipped."""
        from clipadapt.core.experiments import config

        experiment = config.load(configs, settings or (), track=track)
        found = run_experiments([experiment], out, as_json=as_json)
        print_records(found, out, as_json=as_json)
        _draw_runs(found, out)
        if any(r.status == "failed" for r in found):
            say("some runs failed twice; remove their folders to try them again", err=True)
            raise typer.Exit(EXIT_DEFECT)

    @app.command("bench", epilog=_example(f"{program} bench {example_sweep} --dry-run"))
    def bench(
        sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name or file of a sweep.")],
        settings: SettingOption = None,
        out: OutOption = DEFAULT_OUT,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print the runs and what is done; run nothing.")
        ] = False,
        executor: Annotated[
            ExecutorName, typer.Option(help="Run here, or as tasks of a Ray cluster.")
        ] = ExecutorName.local,
        workers: Annotated[
            int | None, typer.Option(min=1, help="Runs at a time, with --executor ray.")
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Run a whole sweep and print its tables; what is complete is skipped, so it resumes by itself."""
        from clipadapt.core.cli.progress import on_stderr
        from clipadapt.core.experiments import sweep as sweeps
        from clipadapt.core.runs.sweep import run_sweep

        if workers not in {None, 1} and executor is ExecutorName.local:
            raise ConfigError(
                f"--workers {workers} needs --executor ray; the local executor does one run at a time",
                hint="or start the same command a second time: processes share one --out",
            )
        experiments = sweeps.load_sweep(sweep, settings or (), track=track)
        if dry_run:
            _print_plan(experiments, out, executor, as_json=as_json)
            return
        with _executor(executor, workers) as chosen:
            outcome = run_sweep(experiments, out, on_stderr(), chosen)
        if as_json:
            print_json({"records": [r.model_dump(mode="json") for r in outcome.records]})
        elif outcome.records:
            _print_bench(outcome.records, out)
        for title, message in outcome.failures:
            say(f"failed: {title}: {message}", err=True)
        earlier = sum(r.status == "failed" for r in outcome.records) > 0
        if outcome.failures or earlier:
            if not outcome.failures:
                say("some runs failed twice; remove their folders to try them again", err=True)
            raise typer.Exit(EXIT_DEFECT)

    @app.command(
        "export",
        epilog=_example(f"{program} export RUN_DIR --format {example_format} --output PATH"),
    )
    def export(
        run_dir: RunDirArgument,
        form: Annotated[str, typer.Option("--format", help="One of those of the method.")],
        output: Annotated[
            Path,
            typer.Option(metavar="PATH", help="A path that does not exist yet.", parser=user_path),
        ],
    ) -> None:
        """Write a run's classifier in the format of another library, with a README that loads it."""
        from clipadapt.core.cli.progress import on_stderr
        from clipadapt.core.runs.inference import export_run

        say(str(export_run(run_dir, form, output, on_stderr())))

    @app.command("table", epilog=_example(f"{program} table runs --format latex"))
    def table(
        directory: RecordsArgument,
        form: Annotated[TableFormat, typer.Option("--format")] = TableFormat.markdown,
        metric: Annotated[str, typer.Option(help="Metric of the table.")] = "accuracy",
        reference: Annotated[
            bool, typer.Option("--reference", help="Set published numbers beside rows they fit.")
        ] = False,
    ) -> None:
        """Print one table of the records in a folder."""
        from clipadapt.core.cli.progress import on_stderr
        from clipadapt.core.records.run_store import RunStore
        from clipadapt.core.report import tables

        if not directory.is_dir():
            raise RecordError(
                f"no folder '{directory}'",
                hint=f"records are written by '{program} run', into 'runs'",
            )
        store = RunStore(directory)
        found = store.load_all(on_stderr().note)
        if not found:
            raise RecordError(
                f"no records in '{directory}'",
                hint=f"records are written by '{program} run'",
            )
        say(
            tables.render(
                tables.build_table(found, metric=metric, reference=reference, store=store),
                form.value,
            ),
            nl=False,
        )

    @app.command("report", epilog=_example(f"{program} report runs --output report.html"))
    def report(
        directory: RecordsArgument,
        output: Annotated[
            Path,
            typer.Option("--output", metavar="FILE", help="HTML file to write.", parser=user_path),
        ] = Path("report.html"),
        examples: Annotated[
            bool,
            typer.Option(help="Show pictures and texts; their data sets are opened by name."),
        ] = True,
    ) -> None:
        """Write one self-contained page: leaderboard, charts, calibration, confusion, examples, recipes."""
        from clipadapt.core.cli.progress import on_stderr
        from clipadapt.core.report.page import write_report

        n = write_report(directory, output, examples=examples, progress=on_stderr())
        say(f"{n} runs: {output}")

    @app.command(
        "validate", epilog=_example(f"{program} validate {example} --set data.name={example_data}")
    )
    def validate(
        configs: Annotated[
            list[str], typer.Argument(metavar="CONFIG...", help="Recipe names or files, merged.")
        ],
        settings: SettingOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Check a config without loading data or weights; show each value and where it came from."""
        from clipadapt.core.experiments import config

        experiment = config.load(configs, settings or (), track=track)
        resolved = experiment.resolved()
        if as_json:
            print_json({"config": resolved, "origins": dict(experiment.origins)})
            return
        width = max(map(len, experiment.origins))
        for key, origin in experiment.origins.items():
            value: Any = resolved
            for part in key.split("."):
                value = value[part]
            say(f"{key:<{width}}  {json.dumps(value, ensure_ascii=False):<24}  ({origin})")

    @app.command("ls", epilog=_example(f"{program} ls methods"))
    def ls(kind: Annotated[Kind, typer.Argument()], as_json: JsonOption = False) -> None:
        """List what is registered or shipped; nothing is imported."""
        from clipadapt.core.api import registry
        from clipadapt.core.experiments import shipped

        listed = {
            Kind.configs: lambda: shipped.config_names(track),
            Kind.sweeps: lambda: shipped.sweep_names(track),
            Kind.protocols: shipped.protocol_names,
        }
        faults: list[str] = []
        if kind in listed:
            names = sorted(listed[kind]())
        else:
            registries: dict[Kind, registry.Registry[Any]] = {
                Kind.methods: registry.METHODS,
                Kind.datasets: registry.DATASETS,
                Kind.models: registry.MODELS,
            }
            entries, faults = registries[kind].survey()
            names = sorted(name for name in entries if name.startswith(f"{track}/"))
            if kind is not Kind.methods:
                names = [n.partition("/")[2] for n in names]
        if as_json:
            print_json({kind.value: names})
        else:
            say("\n".join(names))
        registry.refuse_plugins(faults)

    @app.command("doctor", epilog=_example(f"{program} doctor --dataset {example_data}"))
    def doctor(
        model: Annotated[str | None, typer.Option(help="Check this model too.")] = None,
        dataset: Annotated[str | None, typer.Option(help="Check this data set too.")] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Say what this machine offers and whether a model or data set can be used."""
        from clipadapt.core.cli.doctor import examine

        findings = examine(track, model, dataset)
        if as_json:
            print_json({"checks": findings})
        else:
            for check in findings:
                say(f"{'ok' if check['ok'] else 'MISSING':<8}{check['name']}: {check['detail']}")
        if (model or dataset) and not all(c["ok"] for c in findings if c["asked"]):
            raise typer.Exit(EXIT_USER_ERROR)

    app.add_typer(_cache_app(program), name="cache")
    return app


def _cache_app(program: str) -> typer.Typer:
    cache = typer.Typer(no_args_is_help=True, help="Look after the feature store.")

    @cache.command("ls", epilog=_example(f"{program} cache ls"))
    def ls(as_json: JsonOption = False) -> None:
        """List what is stored, by model and layer."""
        from clipadapt.core.features.cache import FeatureCache

        store = FeatureCache()
        spaces = store.ls()
        if as_json:
            print_json({"directory": str(store.directory), "spaces": [_plain(s) for s in spaces]})
            return
        say(f"{store.directory}: {len(spaces)} feature spaces")
        for space in spaces:
            say("  ".join(f"{k}={v}" for k, v in _plain(space).items()))

    @cache.command("prune", epilog=_example(f"{program} cache prune --max-bytes 1000000000"))
    def prune(
        max_bytes: Annotated[
            int | None,
            typer.Option(min=0, help="Keep at most this much, the least used goes first."),
        ] = None,
        everything: Annotated[bool, typer.Option("--all", help="Remove everything.")] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Remove what was not used for longest, and what killed processes left: checkpoints of runs too."""
        from clipadapt.core.features.cache import FeatureCache
        from clipadapt.core.runs import leftovers

        report = _plain(FeatureCache().prune(max_bytes, everything=everything))
        _show(report | {"leftovers": leftovers.prune()}, as_json=as_json)

    @cache.command("verify", epilog=_example(f"{program} cache verify"))
    def verify(as_json: JsonOption = False) -> None:
        """Check every stored byte; damaged entries are removed and will be computed again."""
        from clipadapt.core.features.cache import FeatureCache

        _show(_plain(FeatureCache().verify()), as_json=as_json)

    return cache


def _show(report: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    counts = {k: len(v) if isinstance(v, list) else v for k, v in report.items()}
    say("  ".join(f"{k}={v}" for k, v in counts.items()))
    for path in report["unreadable"]:
        say(f"cannot read or remove {path}: it is left", err=True)


def _plain(value: Any) -> dict[str, Any]:
    """Return a dataclass as JSON-ready data."""
    import dataclasses

    raw = dataclasses.asdict(value)
    return json.loads(json.dumps(raw, default=str))  # type: ignore[no-any-return]


def _example(command: str) -> str:
    return f"Example: {command}"


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text for people, without what a terminal would obey: names, paths and errors may hold anything."""
    typer.echo(visible(text, lines=True), err=err, nl=nl)


def print_json(document: Any) -> None:
    """Print exactly one JSON document on stdout."""
    say(json.dumps(document, indent=2, allow_nan=False))


def print_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print nested facts as one JSON document, or as indented lines."""
    if as_json:
        print_json(facts)
    else:
        say("\n".join(_fact_lines(facts)))


def _fact_lines(facts: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in facts.items():
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, dict) and item for item in items):
            for item in items:
                if isinstance(value, list) and _is_flat(item):  # a row of a table
                    row = ", ".join(f"{k} {_shown(v)}" for k, v in item.items())
                    lines.append(f"{indent}{key}: {row}")
                else:
                    lines += [f"{indent}{key}:", *_fact_lines(item, f"{indent}  ")]
        elif isinstance(value, int) and not isinstance(value, bool):
            lines.append(f"{indent}{key}: {value:,}")
        else:
            shown = " ".join(_shown(item) for item in items if item != {})
            lines.append(f"{indent}{key}: {shown or 'none'}")
    return lines


def _is_flat(item: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, dict | list) for value in item.values())


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else visible(str(value))


def check_top(top: int) -> None:
    """Check ``--top``.

    Raises:
        ConfigError: If it is below 1.
    """
    if top < 1:
        raise ConfigError(
            f"--top must be at least 1 (got {top})", hint="leave it out for the best class"
        )


def print_predictions(
    run: LoadedRun, predictions: Sequence[Mapping[str, Any]], *, as_json: bool
) -> None:
    """Print predictions as one JSON document, or a line each; say where they are not calibrated."""
    if as_json:
        print_json({"predictions": predictions})
    else:
        for p in predictions:
            ranked = ", ".join(f"{visible(t['label'])} {t['probability']:.3f}" for t in p["top"])
            say(f"{ranked}\t{visible(p['input'])}")  # one line each, whatever a name holds
    if run.temperature is None:
        say("the probabilities are not calibrated: the run fitted no temperature on val", err=True)


def run_experiments(
    experiments: Sequence[Experiment], out: Path, *, as_json: bool
) -> list[RunRecord]:
    """Run experiments; with ``as_json``, what has been recorded is printed although one fails."""
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.runs import session

    def print_json_records(found: Sequence[RunRecord]) -> None:
        print_records(found, out, as_json=True)

    on_error = print_json_records if as_json else None
    return session.run_experiments(experiments, out, on_stderr(), on_error=on_error)


def print_records(found: Sequence[RunRecord], out: Path, *, as_json: bool) -> None:
    """Print records as one JSON document, or as a table with the folder they lie in."""
    if as_json:
        print_json({"records": [r.model_dump(mode="json") for r in found]})
        return
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.report import tables

    table = tables.build_table(found, store=RunStore(out))
    say(tables.render(table, "markdown"), nl=False)
    say(f"\nrecords: {out}", err=True)


def _print_plan(
    experiments: Sequence[Experiment], out: Path, executor: ExecutorName, *, as_json: bool
) -> None:
    """Print the runs of a sweep, what is done, and what the rest will cost."""
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.runs import distributed, forecast
    from clipadapt.core.runs.sweep import plan_sweep

    threads = distributed.THREADS if executor is ExecutorName.ray else None
    _, jobs = plan_sweep(experiments, out, on_stderr(), threads)
    plan = forecast.plan(jobs, RunStore(out).load_all(_quiet) if out.is_dir() else [])
    if as_json:
        print_json(plan)
    else:
        say(forecast.render(plan), nl=False)


def _quiet(note: str) -> None:
    """Pass over what was said before."""


@contextlib.contextmanager
def _executor(name: ExecutorName, workers: int | None) -> Iterator[Executor | None]:
    """Give what runs a sweep: None does so here, one run after another."""
    if name is ExecutorName.local:
        yield None
        return
    from clipadapt.core.runs.distributed import Ray

    with Ray(workers) as executor:
        yield executor


def _print_bench(found: Sequence[RunRecord], out: Path) -> None:
    """Print the summary of a sweep and write it, with the learning curves, beside the records."""
    from clipadapt.core.files.atomic import write_text
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.report import curves, summary

    text = summary.render_summary(summary.build_summary(RunStore(out), records=found), "markdown")
    say(text)
    try:
        write_text(out / "summary.md", text)
    except OSError as err:  # it stands above
        say(f"no summary.md: {err}", err=True)
    try:
        made = curves.plot_curves(RunStore(out), out / "curves")
    except (
        ClipAdaptError,
        OSError,
    ) as err:  # without the plotting extra the tables are still worth having
        say(f"no curves: {err}", err=True)
        made = []
    say(f"records: {out}; summary: {out / 'summary.md'}; curves: {len(made)}", err=True)


def _draw_runs(found: Sequence[RunRecord], out: Path) -> None:
    """Draw the learning curve of every fit into its run's folder; that it cannot be is no failure of the run."""
    from clipadapt.core.records.history import run_folder
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.report import curves

    store = RunStore(out)
    fits = {r.fit_id: r for r in reversed(found) if r.status == "ok"}  # the first target of each
    try:
        made = [p for r in fits.values() if (p := curves.plot_run(run_folder(store, r)))]
    except (ClipAdaptError, OSError) as err:
        say(f"no learning curves: {err}", err=True)
        return
    for path in reversed(made):
        say(f"learning curve: {path}", err=True)


def run_app(app: Callable[..., Any], arguments: Sequence[str] | None = None) -> None:
    """Run ``app``; a user error is one message on stderr and exit code 2."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]  # accepted anywhere, not only before the command
    if arguments is None:
        guard_streams()
    if no_colour():
        import typer.rich_utils

        typer.rich_utils.COLOR_SYSTEM = None  # of help and usage errors
    _interrupt_when_told_to_end()
    try:
        app(args=args)
    except ClipAdaptError as err:
        if debug:
            raise
        _end(str(err))
    except OSError as err:  # of the machine: no right, no room, a disk that fails
        if debug or err.errno is None:
            raise
        where = f"'{err.filename}': " if err.filename else ""
        _end(str(refusal(err) or f"{where}{err.strerror or err}"))
    except MemoryError as err:
        if debug:
            raise
        _end(f"there is not enough memory: {err or 'it is used up'}")
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:
            say("interrupted; complete runs are kept, and the same command resumes", err=True)
        try:
            sys.stdout.flush()
        except ClipAdaptError as err:
            _end(str(err))
        raise


def _end(message: str) -> None:
    """Print an error without what a terminal would obey, and end."""
    text = visible(f"error: {message}", lines=True)
    typer.echo(text if no_colour() else typer.style(text, fg=typer.colors.RED), err=True)
    sys.exit(EXIT_USER_ERROR)


def guard_streams() -> None:
    """Have output go nowhere where nobody takes it: a closed stream or a pipe without a reader.

    A run goes on then and its exit code is that of the work. Characters that the console's encoding lacks are escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed; a file opened later would take its place, and what is printed
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
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
                    line_buffering=old.line_buffering,
                ),
            )


class _Output(io.FileIO):
    """A standard stream whose reader may leave."""

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
                    hint="write it to a place that has room",
                ) from None
            return len(data)


def _interrupt_when_told_to_end() -> None:
    """Have SIGTERM and SIGHUP do what Ctrl-C does, so that they leave nothing behind either."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows lacks one
        # One that is ignored, as nohup has it, stays so; in a thread no handler can be set.
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):
                signal.signal(number, signal.default_int_handler)
