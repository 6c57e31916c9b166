"""A sheet of predicted images: one self-contained HTML file with thumbnails."""

from __future__ import annotations

import base64
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.files.atomic import atomic_file
from clipadapt.core.report.formats import escape_html, format_set, method_title

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.runs.sets import SetRule
    from clipadapt.datasets._images import Thumbnail

MOST_COUNTS: Final = 12
"""Maximum number of classes listed in the heading."""

# The policy prevents a browser from loading anything, even if a file name contains HTML.
HEAD: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #fff; --text: #1b1f24; --soft: #57606a; --card: #f3f4f6;
  --line: #d8dee4; --bar: #b6d4f5; }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #14171a; --text: #e6e9ec; --soft: #9aa4ae;
  --card: #20252a; --line: #343b42; --bar: #27506f; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 80rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 0.95rem/1.4 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ margin: 0 0 0.25rem; font-size: 1.25rem; }}
header p {{ margin: 0.15rem 0; color: var(--soft); }}
main {{ display: grid; gap: 0.75rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(11rem, 45%), 1fr)); }}
figure {{ margin: 0; border: 1px solid var(--line); border-radius: 0.5rem; overflow: hidden;
  background: var(--card); }}
img {{ display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain; background: #fff; }}
figcaption {{ padding: 0.5rem; }}
ol {{ list-style: none; margin: 0; padding: 0; }}
li {{ display: flex; justify-content: space-between; gap: 0.4rem; margin-bottom: 2px; padding: 0 0.25rem;
  font-size: 0.8rem; line-height: 1.5; border-radius: 0.2rem;
  background: linear-gradient(var(--bar), var(--bar)) 0 / var(--p) 100% no-repeat; }}
li span:first-child {{ hyphens: auto; }}
li:first-child {{ font-weight: 600; }}
li span:last-child {{ white-space: nowrap; font-variant-numeric: tabular-nums; }}
small {{ display: block; margin-top: 0.3rem; color: var(--soft); }}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
{lines}</header>
<main>
"""
TAIL: Final = "</main>\n</body>\n</html>\n"


def write_sheet(
    path: Path,
    record: RunRecord,
    predictions: Sequence[Mapping[str, Any]],
    thumbnails: Iterable[Thumbnail],
    rule: SetRule | None = None,
) -> None:
    """Write the sheet atomically; one thumbnail is in memory at a time.

    Args:
        path: The HTML file; an existing file is replaced.
        record: The run that made the predictions.
        predictions: Result of :meth:`~clipadapt.core.runs.inference.LoadedRun.predict`; ``input`` is a file name.
        thumbnails: One per prediction, in order.
        rule: How prediction sets were made, if there are any.

    Raises:
        OSError: If the file cannot be written.
    """
    title = f"{len(predictions)} {'image' if len(predictions) == 1 else 'images'}"
    said = [f"{s[0].upper()}{s[1:]}." for s in (rule.sentences() if rule else ())]
    lines = "".join(
        f"<p>{escape_html(line)}</p>\n" for line in (*_about(record, predictions), *said)
    )
    with atomic_file(path) as file:
        file.write(_bytes(HEAD.format(title=escape_html(title), lines=lines)))
        for prediction, thumbnail in zip(predictions, thumbnails, strict=True):
            file.write(_bytes(_card(prediction, thumbnail)))
        file.write(_bytes(TAIL))


def _about(record: RunRecord, predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    title = method_title(record.method.name, record.method.recipe)
    model = f" on {record.model.name}" if record.model else ""
    shots = f", {record.data.shots} shots" if record.data.shots else ""
    temperature = record.calibration.temperature if record.calibration else None
    calibration = "not calibrated: the run fitted no temperature on val"
    if temperature is not None:
        calibration = f"calibrated on val, temperature {temperature:.3g}"
    sigmoids = "one sigmoid per class, " if record.probabilities == "sigmoid" else ""
    verb = "trained" if record.method.uses_train else "evaluated"
    counts = Counter(p["label"] for p in predictions)
    shown = ", ".join(f"{label} {n}" for label, n in counts.most_common(MOST_COUNTS))
    more = len(counts) - MOST_COUNTS
    return [
        f"{title}{model}, {verb} on {record.data.name}{shots}, seed {record.seed}, run {record.run_id}.",
        f"The probabilities are {sigmoids}{calibration}.",
        f"Predicted: {shown}{f' and {more} more classes' if more > 0 else ''}.",
    ]


def _card(prediction: Mapping[str, Any], thumbnail: Thumbnail) -> str:
    rows = "".join(
        f'<li style="--p:{t["probability"]:.1%}"><span>{escape_html(t["label"])}</span>'
        f"<span>{t['probability']:.1%}</span></li>"
        for t in prediction["top"]
    )
    none = (
        "<small><strong>none of these</strong></small>" if prediction.get("none_of_these") else ""
    )
    sets = (
        f"<small>set: {escape_html(format_set(prediction['set']))}</small>"
        if "set" in prediction
        else ""
    )
    name = escape_html(prediction["input"])
    source = f"data:image/jpeg;base64,{base64.b64encode(thumbnail.jpeg).decode()}"
    return (
        f'<figure><img loading="lazy" width="{thumbnail.width}" height="{thumbnail.height}" alt="{name}" '
        f'src="{source}"><figcaption>{none}<ol>{rows}</ol>{sets}<small>{name}</small></figcaption></figure>\n'
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "xmlcharrefreplace")
