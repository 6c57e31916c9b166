"""What a dataset must have to be opened."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clipadapt.core.api.errors import DataError
from clipadapt.core.api.progress import Silent
from clipadapt.core.api.registry import DATASETS, Resolved
from clipadapt.core.data.targets import OpenDatasets
from clipadapt.core.experiments.settings import DataConfig


def test_a_flag_that_is_not_registered_is_refused_before_any_work(monkeypatch):
    resolved = DATASETS.resolve("synthetic:3x8", "clip")

    def provider(argument, options):
        return replace(resolved.provider(argument, options), flags=("blurred",))

    monkeypatch.setattr(
        DATASETS, "resolve", lambda *_: Resolved(resolved.entry, resolved.argument, provider)
    )

    with pytest.raises(DataError, match="flags that are not registered: blurred"):
        OpenDatasets().get("synthetic:3x8", DataConfig(name="synthetic:3x8"), "clip", Silent())
