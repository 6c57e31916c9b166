"""Records as a pandas DataFrame, one row per run.

Columns: what was run (``dataset``, ``split``, ``method``, ``recipe``, ``model``, ``shots``, ``seed``), each metric with
``_low`` and ``_high`` of its 95 % interval, costs, ``flags``, ids, the folder as ``path``, and the settings that affect
the result by their dotted key, as in ``method.n_ctx``. Failed runs have no metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipadapt.core.api.errors import ClipAdaptError
from clipadapt.core.experiments.settings import settings_that_affect_results

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.records.schema import RunRecord


def frame_of(records: Iterable[RunRecord], store: RunStore) -> pd.DataFrame:
    """Return records as a table; a column that no record fills is left out.

    Raises:
        ClipAdaptError: If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ClipAdaptError(
            "a table of records needs pandas, which is not installed",
            hint='pip install "clipadapt[pandas]"',
        ) from None
    rows = [_row(record, store) for record in records]
    first = ["dataset", "split", "method", "recipe", "model", "shots", "seed", "status"]
    frame = pd.DataFrame(rows)
    if frame.empty:
        return pd.DataFrame(columns=[*first, "run_id", "path"])
    if "shots" in frame:
        frame["shots"] = frame["shots"].astype("Int64")  # missing for the whole split
    return frame.dropna(axis="columns", how="all")


def _row(record: RunRecord, store: RunStore) -> dict[str, Any]:
    own, evaluation = record.data, record.evaluation
    row: dict[str, Any] = {
        "dataset": evaluation.dataset,
        "split": evaluation.split,
        "method": record.method.name,
        "recipe": record.method.recipe,
        "model": record.model.name if record.model else None,
        "shots": own.shots,
        "seed": record.seed,
        "status": record.status,
    }
    for name, metric in record.metrics.items():
        row[name] = metric.value
        if metric.low is not None:
            row |= {f"{name}_low": metric.low, f"{name}_high": metric.high}
    row |= {
        "trained_on": own.name,
        "classes": evaluation.classes,
        "protocol": evaluation.protocol,
        "n_train": own.n_train,
        "n_val": own.n_val,
        "n_test": own.n_test,
        "n_classes": own.n_classes,
        "n_trainable_params": record.n_trainable_params,
        "temperature": record.calibration.temperature if record.calibration else None,
        **record.cost.model_dump(),
        "flags": ", ".join(record.flags),
        "error": record.error,
        "dtype": record.model.dtype if record.model else None,
        "started_at": record.started_at,
        "run_id": record.run_id,
        "fit_id": record.fit_id,
        "path": str(store.run_dir(record)),
    }
    settings = settings_that_affect_results(record.config)
    return row | {key: _plain(value) for key, value in settings.items() if key not in row}


def _plain(value: Any) -> Any:
    """Return a setting as one cell: lists and mappings as text."""
    return value if isinstance(value, str | int | float | bool | None) else str(value)
