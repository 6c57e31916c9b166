"""The page of ``app``: the Gradio components around a :class:`~clipadapt.core.runs.trial.Trial`, and their server.

Everything that the page shows is computed in ``core/runs/trial.py`` and written as HTML in ``core/report/cards.py``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import gradio
import uvicorn
from fastapi import FastAPI

from clipadapt.core.api.errors import ClipAdaptError
from clipadapt.core.report import cards
from clipadapt.core.runs.trial import Asked, Trial

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

POLICY: Final = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'self'"
"""Nothing is loaded from anywhere else, whatever the components would like."""
LARGEST: Final = "100mb"
"""Largest file that may be uploaded."""
END_SECONDS: Final = 1
"""How long open connections may take to end after Ctrl-C."""
STYLE: Final = """
.gradio-container { max-width: 1300px !important; margin: 0 auto; }
footer { display: none !important; }
.gradio-container .html-container { padding: 0 !important; }
#parts { display: grid; grid-template: auto 1fr / minmax(0, 2fr) minmax(0, 3fr); gap: 1rem 1.5rem; }
#parts > :nth-child(2) { grid-area: 1 / 2 / 3 / 3; }
@media (max-width: 800px) {
  #parts { grid-template: none / minmax(0, 1fr); }
  #parts > :nth-child(2) { grid-area: auto; }
}
"""


@dataclass(frozen=True, slots=True)
class _Controls:
    """The components that a user changes."""

    given: Any
    use_sets: Any
    coverage: Any
    use_reject: Any
    reject_rate: Any
    top: Any
    classnames: Any
    templates: Any

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self.__slots__)


def build(trial: Trial) -> Any:
    """Return the page of a run as Gradio blocks."""
    title = f"{trial.track.program} app: {trial.run.record.method.name}"
    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"## Try {trial.run.record.method.name} on your own {trial.track.inputs}")
        gradio.HTML(cards.about(trial.run.record))
        with gradio.Row(elem_id="parts"):
            with gradio.Column(min_width=0):
                given = _given(trial)
                predict = gradio.Button(
                    "Predict", variant="primary", elem_id="predict",
                    visible=not trial.track.trial.files,
                )  # fmt: skip
            with gradio.Column(min_width=0):
                output = gradio.HTML(_start(trial), elem_id="answer")
            with gradio.Column(min_width=0):
                use_sets, coverage, use_reject, reject_rate = _set_controls(trial)
                top = gradio.Slider(
                    1, min(len(trial.classnames), 20), min(len(trial.classnames), 5), step=1,
                    precision=0, label="Classes to show", buttons=[],
                    visible=len(trial.classnames) > 1,
                )  # fmt: skip
                classnames, templates, apply = _vocabulary(trial)
        controls = _Controls(
            given, use_sets, coverage, use_reject, reject_rate, top, classnames, templates
        )
        changed = given.change if trial.track.trial.files else given.submit
        triggers = [changed, predict.click, use_sets.change, use_reject.change, apply.click]
        triggers += [s.release for s in (coverage, reject_rate, top)]
        gradio.on(
            triggers,
            _answer(trial),
            list(controls),
            output,
            api_name="predict",
            show_progress="minimal",
        )
    return page


def serve(trial: Trial, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        trial: The run.
        listening: The bound socket.
        ready: Called when the page can be opened.

    Raises:
        KeyboardInterrupt: When the user ends it.
    """
    # Gradio asks under which address it runs; other libraries log each request to the terminal.
    for name in ("httpx", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    host, port = listening.getsockname()[:2]
    app = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        build(trial),
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        run_history=False,
        max_file_size=LARGEST,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gradio.themes.Default(
            primary_hue="blue",
            font=("system-ui", "sans-serif"),
            font_mono=("ui-monospace", "monospace"),
        ).set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"),
        css=STYLE + cards.STYLE,
    )
    config = uvicorn.Config(
        _Closed(app), log_level="warning", timeout_graceful_shutdown=END_SECONDS
    )
    _Server(config, ready).run(sockets=[listening])


class _Server(uvicorn.Server):
    """A server that says when it has started."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


class _Closed:
    """An ASGI application whose pages may only load what it serves itself."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", POLICY),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, guarded)


def _given(trial: Trial) -> Any:
    if trial.track.trial.files:
        return gradio.File(
            file_count="multiple",
            file_types=["image"],
            label="Images",
            height=200,
            elem_id="given",
            buttons=[],
        )
    return gradio.Textbox(
        lines=4,
        label="Texts",
        info="One per line; Shift+Enter predicts.",
        placeholder="a fine film",
        elem_id="given",
        buttons=[],
    )


def _set_controls(trial: Trial) -> tuple[Any, Any, Any, Any]:
    """Return whether sets are made, their coverage, whether inputs are rejected, and the rate of it."""
    options, missing = trial.options, trial.set_error()
    possible = not missing
    with gradio.Group():
        use_sets = gradio.Checkbox(
            possible, label="Prediction set", elem_id="use-sets", interactive=possible,
            info="As many classes as it takes to contain the true one with the coverage below.",
            buttons=[],
        )  # fmt: skip
        coverage = gradio.Slider(
            0.5, 0.99, options.coverage or 0.9, step=0.01, precision=2, label="Coverage",
            elem_id="coverage", visible=possible, buttons=[],
        )  # fmt: skip
        use_reject = gradio.Checkbox(
            possible and options.reject_rate is not None, label="None of these",
            elem_id="use-reject", interactive=possible, buttons=[],
            info="Where the confidence is lower than that of most inputs of a known class.",
        )  # fmt: skip
        reject_rate = gradio.Slider(
            0.01, 0.5, options.reject_rate or 0.05, step=0.01, precision=2,
            label="Share of inputs of a known class that may be rejected", visible=possible,
            elem_id="reject-rate", buttons=[],
        )  # fmt: skip
    if missing:
        gradio.HTML(cards.note(missing))
    return use_sets, coverage, use_reject, reject_rate


def _vocabulary(trial: Trial) -> tuple[Any, Any, Any]:
    """Return class names, templates and their button, which are only visible with an open vocabulary."""
    wide = trial.open_vocabulary
    with gradio.Accordion(
        "Class names and templates" if trial.templates else "Class names", open=wide, visible=wide
    ):
        classnames = gradio.Textbox(
            "\n".join(trial.classnames), lines=4, max_lines=12, label="Class names",
            info="One per line.", elem_id="classnames", buttons=[],
        )  # fmt: skip
        templates = gradio.Textbox(
            "\n".join(trial.templates), lines=2, max_lines=8, label="Templates",
            info=_sets_of_templates(trial), elem_id="templates", visible=bool(trial.templates),
            buttons=[],
        )  # fmt: skip
        with gradio.Row():
            apply = gradio.Button("Apply", variant="primary", elem_id="apply")
            reset = gradio.Button("Reset", elem_id="reset")
        own = ("\n".join(trial.classnames), "\n".join(trial.templates))
        reset.click(lambda: own, None, [classnames, templates], api_visibility="private")
    return classnames, templates, apply


def _sets_of_templates(trial: Trial) -> str:
    sets = " and ".join(trial.track.template_sets)
    named = f"; {sets} are sets of templates" if sets else ""
    return f"One per line, each with {{}} for the class name{named}."


def _start(trial: Trial) -> str:
    verb = "Drop images" if trial.track.trial.files else "Type texts"
    return cards.message(f"{verb} to see their classes.")


def _answer(trial: Trial) -> Callable[..., str]:
    """Return the function that the page calls when something has changed."""

    def answer(*values: Any) -> str:
        c = _Controls(*values)
        given = c.given or []
        if isinstance(given, str):
            given = [line.strip() for line in given.splitlines() if line.strip()]
        if not given:
            return _start(trial)
        asked = Asked(
            float(c.coverage) if c.use_sets else None,
            float(c.reject_rate) if c.use_reject else None,
            int(c.top),
            c.classnames or "",
            c.templates or "",
        )
        try:
            return cards.cards(trial.predict([str(g) for g in given], asked))
        except ClipAdaptError as err:
            return cards.message(str(err), error=True)

    return answer
