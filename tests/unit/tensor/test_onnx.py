"""Writing networks as ONNX: sizes that stay free, and what goes wrong as one message."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from clipadapt.core.api.errors import ClipAdaptError, ModelError
from clipadapt.tensor import onnx

pytestmark = pytest.mark.slow


pytest.importorskip("onnx", reason="the extra onnx is not installed")
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Softmax(torch.nn.Module):
    def __init__(self, run=lambda x: x):
        super().__init__()
        self.run = run

    def forward(self, x):
        return self.run(x).softmax(dim=1)


def write(folder, run=lambda x: x, shift=0.0):
    return onnx.write(folder, Softmax(run).eval(), {"x": X}, X.softmax(dim=1).numpy() + shift)


def test_what_onnxruntime_gives_is_compared_and_returned(tmp_path, capfd):
    found = write(tmp_path, shift=5e-5)

    assert 4e-5 < found < 6e-5
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    import onnx as library

    onnx.stamp(tmp_path, {"a": "1"})({"run_id": "r"})
    props = library.load(tmp_path / "model.onnx").metadata_props
    assert {p.key: p.value for p in props} == {"a": "1", "run_id": "r"}


@pytest.mark.parametrize(
    ("run", "shift", "message"),
    [
        (lambda x: x, 2e-4, r"differs from torch: a probability by 0.0002, at most 0.0001"),
        (lambda x: x * float("nan"), 0, r"differs from torch: a probability by nan"),
        (lambda x: x if x.sum() > 0 else -x, 0, r"torch cannot write this network as onnx: Could"),
        (lambda x: x.reshape(3, 4), 0, r"onnxruntime cannot run .* classifier: .*INVALID_ARGUMENT"),
    ],
)
def test_a_network_that_cannot_be_exported_is_one_message(run, shift, message, tmp_path):
    with pytest.raises(ModelError, match=message) as error:
        write(tmp_path, run, shift)

    assert "\n" not in error.value.problem
    assert error.value.hint == "use another --format"


def test_a_folder_that_cannot_be_written_stays_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "missing")


@pytest.mark.parametrize("name", onnx.LIBRARIES)
def test_a_missing_library_is_named_with_the_command_that_installs_it(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ClipAdaptError, match=f"needs {name}, which is not installed") as error:
        write(tmp_path)

    assert error.value.hint == 'pip install "clipadapt[onnx]"'


def test_several_axes_may_be_free(tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, ids, mask):
            total = (ids * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
            return torch.cat([total, -total], dim=1).softmax(dim=1)

    ids, mask = torch.arange(10).reshape(2, 5) / 10, torch.ones(2, 5)
    network = Mean().eval()

    onnx.write(
        tmp_path,
        network,
        {"ids": ids, "mask": mask},
        network(ids, mask).numpy(),
        free=("n", "length"),
    )

    import onnxruntime

    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert [i.shape for i in session.get_inputs()] == [["n", "length"]] * 2
    for n, length in ((1, 2), (4, 9)):
        given = np.ones((n, length), dtype=np.float32)
        (found,) = session.run(None, {"ids": given, "mask": given})
        assert found.shape == (n, 2)
