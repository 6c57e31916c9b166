"""Hooks of mkdocs, which builds the site."""

from __future__ import annotations

import os
from typing import Any


def on_config(config: Any) -> Any:
    """Keep a hint of tqdm about widgets, which the site cannot show, out of the notebooks: kernels inherit this."""
    own = os.environ.get("PYTHONWARNINGS")
    hint = "ignore:IProgress not found"
    os.environ["PYTHONWARNINGS"] = f"{own},{hint}" if own else hint
    return config
