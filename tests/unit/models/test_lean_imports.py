"""What is left out of the imports is there for whoever asks for it, and nothing that stood in for it remains."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CODE = """
import json, sys
import clipadapt.models._adapter
with clipadapt.models._lean_imports.without_compiler():
    import transformers.modeling_utils
names = ("torch._dynamo", "scipy.optimize")
before = {n: n in sys.modules for n in names}
import torch
doubled = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2))
from transformers.loss import loss_for_object_detection as detection
rows, columns = detection.linear_sum_assignment([[2.0, 1.0], [1.0, 3.0]])
import scipy.optimize
print(json.dumps({
    "before": before,
    "doubled": doubled.tolist(),
    "columns": columns.tolist(),
    "file": torch._dynamo.__file__.endswith("__init__.py"),
    "minimum": float(scipy.optimize.minimize_scalar(lambda x: (x - 2) ** 2).x),
}))
"""


@pytest.mark.parametrize("lean", ["", "off"])
def test_what_was_left_out_works_when_it_is_asked_for(lean):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | {"CLIPADAPT_LEAN_IMPORTS": lean},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    left_out = lean != "off"
    assert found["before"] == {"torch._dynamo": not left_out, "scipy.optimize": not left_out}
    assert found["doubled"] == [2.0, 2.0]
    assert found["columns"] == [1, 0]
    assert found["file"]
    assert found["minimum"] == pytest.approx(2.0)
