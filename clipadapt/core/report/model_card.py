"""The card of a pushed run: ``README.md`` with the metadata of the Hugging Face hub.

References:
    https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.flags import FLAGS
from clipadapt.core.api.registry import track_of, tracks
from clipadapt.core.api.user_input import shown
from clipadapt.core.experiments.dotted import flatten
from clipadapt.core.records.run_store import CALIBRATION
from clipadapt.core.report.formats import (
    Column,
    escape_markdown,
    format_count,
    format_interval,
    format_value,
    markdown_grid,
    method_title,
    metric_title,
    split_title,
)
from clipadapt.core.runs.publish import CLASSNAMES
from clipadapt.core.scoring.metrics import find_metric
from clipadapt.core.scoring.statistics import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipadapt.core.api.tracks import HubTask
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.scoring.metrics import MetricValue

MOST_CLASSES: Final = 50
"""Class names that the card shows."""
NAME: Final = "README.md"
LIBRARY: Final = "clipadapt"
_LICENCES: Final = {
    "mit": "mit",
    "apache-2.0": "apache-2.0",
    "apache 2.0": "apache-2.0",
    "cc0": "cc0-1.0",
    "cc0 1.0": "cc0-1.0",
    "cc by 4.0": "cc-by-4.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc by-sa 4.0": "cc-by-sa-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "bsd-3-clause": "bsd-3-clause",
}
"""Licences as records have them -> their names on the hub."""
_MODEL: Final = re.compile(r"huggingface\.co/(?!datasets/|spaces/)([\w-][\w.-]*/[\w-][\w.-]*)")
_DATASET: Final = re.compile(r"huggingface\.co/datasets/([\w-][\w.-]*/[\w-][\w.-]*)")
_REPO: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def hub_licence(text: str) -> str | None:
    """Return the hub's name of a licence, or None if the text is not plainly one."""
    plain = re.sub(r"\s*\(.*\)$", "", text.strip()).lower()
    return _LICENCES.get(plain)


def check_licence(licence: str | None) -> None:
    """Check that a licence has the form of the hub's names.

    Raises:
        ConfigError: If it does not.
    """
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise ConfigError(
            f"--license takes the hub's name of a licence, such as mit or cc-by-4.0 (got {shown(licence)})",
            hint="the names are listed at https://huggingface.co/docs/hub/repositories-licenses",
        )


def render(record: RunRecord, classnames: Sequence[str], name: str, licence: str | None) -> str:
    """Return the text of a card.

    Args:
        record: The record as it is published.
        classnames: ``C`` class names, in the order of the scores.
        name: ``ORG/NAME``.
        licence: The hub's name of the licence of what was trained, or None for that of the model.
    """
    task = tracks()[track_of(record.method.name)].hub
    sections = {
        "How to use it": _usage(record, task, name),
        "Data": _data(record, classnames),
        "Metrics": _metrics(record),
        "Model": _model(record),
        "Method": _method(record),
        "Calibration": _calibration(record),
        "Flags": _flags(record),
        "Citation": _citation(record),
    }
    body = "\n".join(f"## {title}\n\n{text.rstrip()}\n" for title, text in sections.items())
    title = escape_markdown(name.partition("/")[2])
    return f"---\n{metadata(record, name, licence)}---\n\n# {title}\n\n{_summary(record, task, classnames)}\n\n{body}"


def metadata(record: RunRecord, name: str, licence: str | None) -> str:
    """Return the card's metadata as YAML, written by the hub's own library."""
    from huggingface_hub import ModelCardData

    own = tracks()[track_of(record.method.name)]
    base = _base_model(record)
    dataset = _first(_DATASET, record.data.source)
    chosen = licence or (hub_licence(record.model.licence) if record.model else None)
    card = ModelCardData(
        license=chosen or "unknown",
        library_name=LIBRARY,
        pipeline_tag=own.hub.pipeline_tag,
        tags=[own.program, record.method.name.partition("/")[2], *_settings_tags(record)],
        base_model=base,
        datasets=[dataset] if dataset else None,
        metrics=_named(record) or None,
        model_name=name.partition("/")[2],
        eval_results=_results(record, own.hub) or None,
    )
    return str(card.to_yaml()).rstrip() + "\n"


def _results(record: RunRecord, task: HubTask) -> list[Any]:
    from huggingface_hub import EvalResult

    evaluation = record.evaluation
    dataset = (
        _first(_DATASET, record.data.source) if evaluation.dataset == record.data.name else None
    )
    return [
        EvalResult(
            task_type=task.pipeline_tag,
            dataset_type=dataset or evaluation.dataset,
            dataset_name=evaluation.dataset,
            dataset_split=evaluation.split,
            dataset_revision=record.data.revision if dataset else None,
            metric_type=name,
            metric_value=metric.value,
            metric_name=_with_interval(name, metric),
        )
        for name, metric in record.metrics.items()
    ]


def _with_interval(name: str, metric: MetricValue) -> str:
    """Return a metric's title with interval and n, as the hub's format has no field for them."""
    n = f"n = {metric.n}"
    if metric.low is None or metric.high is None:
        return f"{metric_title(name, '')} ({n})"
    return f"{metric_title(name, '')} (95 % interval {metric.low:.4f} to {metric.high:.4f}, {n})"


def _named(record: RunRecord) -> list[str]:
    return [name for name in record.metrics if (m := find_metric(name)) and m.name == name]


def _settings_tags(record: RunRecord) -> list[str]:
    shots = record.data.shots
    return [
        *([f"{shots}-shot"] if shots else []),
        *(["zero-shot"] if not record.method.uses_train else []),
    ]


def _base_model(record: RunRecord) -> str | None:
    """Return the hub repository of the model, or None if it is not known to be on the hub."""
    if record.model is None:
        return None
    config: Any = record.config
    name = str(config["model"]["name"])
    stated = _first(_MODEL, f"{record.model.licence} {record.model.citation}")
    if record.model.revision is None:
        return stated
    plain = re.sub(r"@.*", "", name.partition(":")[2] or name)
    return stated or (plain if _REPO.fullmatch(plain) else None)


def _summary(record: RunRecord, task: HubTask, classnames: Sequence[str]) -> str:
    method = escape_markdown(method_title(record.method.name, record.method.recipe))
    model = f" on the model {escape_markdown(record.model.name)}" if record.model else ""
    examples = f"{format_count(record.data.n_train)} examples"
    if record.data.shots:
        examples += f" ({record.data.shots} per class)"
    how = (
        f"fitted to {examples} of {escape_markdown(record.data.name)}"
        if record.method.uses_train
        else f"without training, for the classes of {escape_markdown(record.data.name)}"
    )
    accuracy = record.metrics.get("accuracy")
    measured = ""
    if accuracy is not None:
        where = f"{escape_markdown(record.evaluation.dataset)}, {_split(record)}"
        measured = (
            f" Accuracy {format_interval(_interval(accuracy))} % on {where} "
            f"({format_count(accuracy.n)} examples; 95 % interval in brackets)."
        )
    return (
        f"A classifier for {task.title} with {len(classnames)} classes: {method}{model}, {how}, "
        f"made with {LIBRARY}.{measured}"
    )


def _usage(record: RunRecord, task: HubTask, name: str) -> str:
    own = tracks()[track_of(record.method.name)]
    has_sets = CALIBRATION in record.files
    needs = (
        ""
        if record.model is None
        else (
            " The weights of the model are loaded by its name and compared with the sha256 in the record."
        )
    )
    code = [
        f"import {own.program}",
        "",
        f'run = {own.program}.load_run("hf:{name}")',
        f"print(run.predict({task.examples}), run.predict_proba({task.examples}))",
    ]
    sets = (
        " For prediction sets there are `calibration.npz` and `--coverage 0.9`." if has_sets else ""
    )
    holds = (
        "The repository holds the record of the run (`record.json`), the trained parameters (`classifier/`) and the "
        f"class names (`{CLASSNAMES}`), in safetensors and JSON.{sets}{needs} The files are downloaded once, checked "
        "against the record, and read without a network afterwards."
    )
    shell = ["```sh", f"{own.program} predict hf:{name} {task.argument} --top 3", "```"]
    python = ["```python", *code, "```"]
    intro = "In the shell, after `pip install clipadapt`:"
    return "\n".join([intro, "", *shell, "", "In Python:", "", *python, "", holds])


def _data(record: RunRecord, classnames: Sequence[str]) -> str:
    data = record.data
    facts = {
        "Dataset": data.name,
        "Source": data.source,
        "Commit": data.revision,
        "Licence of the data": data.licence,
        "Citation": data.citation,
        "Training examples": f"{format_count(data.n_train)}"
        + (f", {data.shots} per class" if data.shots else ""),
        "Validation examples": format_count(data.n_val),
        "Seed": str(record.seed),
    }
    shown = ", ".join(escape_markdown(c) for c in classnames[:MOST_CLASSES])
    more = len(classnames) - MOST_CLASSES
    rest = f", and {more} more in `{CLASSNAMES}`" if more > 0 else ""
    return _list(facts) + f"\nClasses, in the order of the scores: {shown}{rest}.\n"


def _metrics(record: RunRecord) -> str:
    evaluation = record.evaluation
    columns = (Column("Metric", text=True), Column("Value [95 % interval]"), Column("n"))
    rows = [
        (metric_title(name, m.unit), format_interval(_interval(m), m.unit), format_count(m.n))
        for name, m in record.metrics.items()
    ]
    where = f"{escape_markdown(evaluation.dataset)}, {_split(record)}"
    protocol = escape_markdown(evaluation.protocol)
    parts = [
        f"Evaluated on {where}, with the protocol {protocol}. The intervals are those of one run with one seed."
    ]
    if evaluation.templates and record.method.uses_templates:
        first = escape_markdown(evaluation.templates[0])
        n = len(evaluation.templates)
        parts.append(f"Template: {first}" if n == 1 else f"{n} templates, the first: {first}")
    return "\n\n".join([*parts, markdown_grid(columns, rows)])


def _model(record: RunRecord) -> str:
    model = record.model
    if model is None:
        return "The method uses no pretrained model."
    return _list({
        "Name": model.name,
        "Commit": model.revision,
        "sha256 of its files": model.weights_sha256,
        "Precision": model.dtype,
        "Licence of the weights": model.licence,
        "Citation": model.citation,
        "Trainable parameters": format_count(record.n_trainable_params),
        "All parameters": format_count(record.n_total_params),
    })


def _method(record: RunRecord) -> str:
    config: Any = record.config
    recipe: Mapping[str, Any] = config.get("recipe") or {}
    on = record.environment.gpu or record.environment.device
    facts = {
        "Method": f"{record.method.name}, version {record.method.version}",
        "Recipe": record.method.recipe,
        "Source of the recipe": str(recipe.get("source") or ""),
        "Setting": record.method.setting,
        "Fit": f"{format_value(record.cost.fit_seconds, 'seconds')} s on {on}",
    }
    deviations = [f"  - {escape_markdown(d)}" for d in record.method.deviations]
    intro = "- Deviations from the source:" + ("" if deviations else " none stated")
    named = "\n".join([intro, *deviations])
    settings = flatten({k: v for k, v in config["method"].items() if k != "name"})
    columns = (Column("Setting", text=True), Column("Value", text=True))
    grid = markdown_grid(columns, [(key, _shown(value)) for key, value in settings.items()])
    return f"{_list(facts)}{named}\n\n{grid}"


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _calibration(record: RunRecord) -> str:
    temperature = record.calibration.temperature if record.calibration else None
    kind = (
        "The probability of each class is a sigmoid of its own score; the probabilities need not sum to 1."
        if record.probabilities == "sigmoid"
        else "Probabilities are a softmax over the classes."
    )
    if temperature is None:
        return f"{kind} No temperature was fitted: the probabilities are not calibrated."
    ece = record.metrics.get("ece"), record.metrics.get("ece_calibrated")
    change = ""
    if ece[0] is not None and ece[1] is not None:
        change = (
            f" The expected calibration error on the evaluation split is {format_value(ece[0].value, 'fraction')} % "
            f"without it and {format_value(ece[1].value, 'fraction')} % with it."
        )
    return f"{kind} Scores are divided by the temperature {temperature:.4g}, fitted on val.{change}"


def _flags(record: RunRecord) -> str:
    if not record.flags:
        return "None."
    lines = []
    for name in record.flags:
        known = FLAGS.get(name)
        lines.append(
            f"- `{name}`"
            + (f" ({known.severity}): {escape_markdown(known.meaning)}" if known else "")
        )
    return "\n".join(lines)


def _citation(record: RunRecord) -> str:
    config: Any = record.config
    recipe: Mapping[str, Any] = config.get("recipe") or {}
    version = record.environment.packages.get(LIBRARY, "")
    return _list({
        "Method": str(recipe.get("source") or ""),
        "Model": record.model.citation if record.model else "",
        "Data": record.data.citation,
        "Software": f"The clipadapt authors, clipadapt {version}".rstrip(),
        "Run": f"{record.run_id}, {record.started_at:%Y-%m-%d}",
    })


def _split(record: RunRecord) -> str:
    return "split " + escape_markdown(
        split_title(record.evaluation.split, record.evaluation.classes)
    )


def _interval(metric: MetricValue) -> Interval:
    return Interval(metric.value, metric.low, metric.high, level=0.95, n=metric.n)


def _list(facts: Mapping[str, str | None]) -> str:
    """Return a Markdown list of the facts that are known."""
    return "".join(f"- {key}: {escape_markdown(value)}\n" for key, value in facts.items() if value)


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found[1].rstrip(".") if found else None
