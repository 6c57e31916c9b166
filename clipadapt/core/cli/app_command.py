"""``app``: a page in the browser to try a run on."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Final

import typer

from clipadapt.core.api.errors import ClipAdaptError, ConfigError
from clipadapt.core.cli.options import (
    CalibrateOnOption,
    CoverageOption,
    RejectRateOption,
    RunDirArgument,
    SetScoreOption,
    track_of,
)
from clipadapt.core.cli.output import say

if TYPE_CHECKING:
    from clipadapt.core.runs.trial import Trial

HERE: Final = "127.0.0.1"
PORT: Final = 7860
MOST_NEIGHBOURS: Final = 50


def app(
    context: typer.Context,
    run_dir: RunDirArgument,
    coverage: CoverageOption = None,
    set_score: SetScoreOption = "lac",
    reject_rate: RejectRateOption = None,
    calibrate_on: CalibrateOnOption = None,
    neighbours: Annotated[
        int, typer.Option(help="Nearest training examples to show; 0 for none.")
    ] = 6,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Address to listen on; the default is for this machine alone."
        ),
    ] = HERE,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = PORT,
    browser: Annotated[
        bool, typer.Option("--browser", help="Open the page; by default its address is printed.")
    ] = False,
) -> None:
    """Try a run on a page in the browser: classes, prediction sets, near training examples; Ctrl-C ends it.

    Where the method works with other classes, class names and templates can be changed. Nothing leaves this machine.
    Needs the extra 'app'.
    """
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.runs.inference import load_run
    from clipadapt.core.runs.sets import SetOptions
    from clipadapt.core.runs.trial import Trial

    if not 0 <= neighbours <= MOST_NEIGHBOURS:
        raise ConfigError(
            f"--neighbours must be between 0 and {MOST_NEIGHBOURS} (got {neighbours})",
            hint="leave it out for 6",
        )
    options = SetOptions(
        coverage if coverage is not None else 0.9, set_score, reject_rate, calibrate_on
    )
    require_gradio()
    with listen(host, port) as listening:  # before the model is loaded
        progress = on_stderr()
        run = load_run(run_dir, progress, track=track_of(context).name)
        trial = Trial(run, options, neighbours, progress)
        if trial.why_not_near:
            progress.note(f"note: {trial.why_not_near}")
        serve(trial, listening, host, open_browser=browser)


def require_gradio() -> None:
    """Check that the extra ``app`` is installed.

    Raises:
        ClipAdaptError: If it is not.
    """
    if find_spec("gradio") is None:
        raise ClipAdaptError(
            "the page needs gradio, which is not installed", hint='pip install "clipadapt[app]"'
        )


def serve(trial: Trial, listening: socket.socket, host: str, *, open_browser: bool) -> None:
    """Serve the page until Ctrl-C; uploaded files are removed at the end."""
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"

    def ready() -> None:
        say(f"open {address} (Ctrl-C ends it)")
        if not _is_loopback(listening):
            say(
                "warning: anyone who reaches this machine over the network can use the page; "
                "without --host only this machine can",
                err=True,
            )
        if open_browser:
            import webbrowser

            webbrowser.open(address)

    with tempfile.TemporaryDirectory(prefix="clipadapt-app-") as folder:
        # Read when gradio is imported, or by it on every start.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        from clipadapt.core.cli import app_page

        try:
            app_page.serve(trial, listening, ready)
        except KeyboardInterrupt:
            say("stopped", err=True)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        ConfigError: If there is no such address, or the port is taken.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(
            f"--port must be between 0 and 65535 (got {port})", hint="--port 0 takes a free one"
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(found[0], found[1])
    except (OSError, UnicodeError):
        raise _no_address(host) from None
    if os.name == "posix":  # a port whose last user has just ended is free
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(found[4])
        listening.listen()
    except OSError as err:
        listening.close()
        if err.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken by another program",
                hint=f"--port {port + 1 if port < 65535 else 0}, or --port 0 for a free one",
            ) from None
        if err.errno == errno.EACCES:
            raise ConfigError(
                f"port {port} may not be used: {err.strerror}", hint="use a port above 1023"
            ) from None
        raise _no_address(host) from None
    return listening


def _no_address(host: str) -> ConfigError:
    return ConfigError(
        f"'{host}' is not an address of this machine",
        hint="leave out --host for this machine alone, or use --host 0.0.0.0 for the network",
    )


def _is_loopback(listening: socket.socket) -> bool:
    import ipaddress

    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback
