"""``push``: write a run to a model repository of the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

from clipadapt.core.cli.options import JsonOption, RunDirArgument, track_of
from clipadapt.core.cli.output import print_json, say


def push(
    context: typer.Context,
    run_dir: RunDirArgument,
    name: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="Model repository; created if there is none.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="ID", help="The hub's name of a licence; default: the model's."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card and the files; push nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Push a run to the Hugging Face hub: record, classifier, class names and a card, in one commit.

    Examples, predictions and paths of this machine are not pushed. Token and address are those of the hub client
    (HF_TOKEN or 'hf auth login', HF_ENDPOINT).
    """
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.files import hub_upload
    from clipadapt.core.records.run_store import CLASSIFIER
    from clipadapt.core.report import model_card
    from clipadapt.core.runs import publish

    model_card.check_licence(licence)
    (hub_upload.check_target if dry_run else hub_upload.check_can_push)(name)
    own = track_of(context)
    prepared = publish.prepare(run_dir, track=own.name, progress=on_stderr())
    card = model_card.render(prepared.record, prepared.classnames, name, licence)
    files = {model_card.NAME: card.encode(), **prepared.files}
    if dry_run and as_json:
        print_json({"name": name, "card": card, "files": list(files)})
        return
    if dry_run:
        say(card, nl=False)
        say(f"not pushed: {', '.join(files)}", err=True)
        return
    message = f"Add run {prepared.record.run_id} of {prepared.record.method.name}"
    done = hub_upload.push(name, files, message, private=private, replace=CLASSIFIER)
    if as_json:
        print_json({
            "name": done.name,
            "url": done.url,
            "commit": done.commit,
            "private": done.private,
            "files": list(files),
        })
        return
    say(done.url)
    say(f"commit: {done.commit}{'; private' if done.private else ''}", err=True)
    say(f"use it: {own.program} predict hf:{done.name} {own.hub.argument}", err=True)
