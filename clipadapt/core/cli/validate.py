"""``validate``: check a config and show every value."""

from __future__ import annotations

import json

import typer

from clipadapt.core.cli.options import (
    ConfigsArgument,
    DatasetOption,
    JsonOption,
    ModelOption,
    SeedsOption,
    SettingOption,
    ShotsOption,
    named_settings,
    track_of,
)
from clipadapt.core.cli.output import print_json, say


def validate(
    context: typer.Context,
    configs: ConfigsArgument,
    model: ModelOption = None,
    dataset: DatasetOption = None,
    shots: ShotsOption = None,
    seeds: SeedsOption = None,
    settings: SettingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a config without loading data or weights; show each value, its source and what it affects."""
    from clipadapt.core.api.registry import METHODS
    from clipadapt.core.cli.run import load_experiment
    from clipadapt.core.experiments.dotted import get
    from clipadapt.core.runs.plan import check_names

    experiment = load_experiment(
        configs, named_settings(model, dataset, shots, seeds), settings, track_of(context).name
    )
    check_names(experiment)
    if experiment.config.model is None and METHODS.get(experiment.method_name).requires is not None:
        say(
            f"note: {experiment.method_name} needs a model, and none is set (--model NAME)",
            err=True,
        )
    resolved, effects = experiment.resolved(), experiment.effects()
    origins = dict(experiment.origins)
    if as_json:
        print_json({"config": resolved, "origins": origins, "affects": effects})
        return
    width = max(map(len, origins))
    for key, origin in origins.items():
        value = json.dumps(get(resolved, key), ensure_ascii=False)
        say(f"{key:<{width}}  {value:<24}  ({origin}; affects {effects[key]})")
