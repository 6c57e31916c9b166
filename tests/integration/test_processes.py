"""Text fits in two processes that ``torchrun`` starts, with gloo on CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipadapt.core.records.run_store import RunStore
from tests.unit.textsent.tiny import make_split

pytestmark = pytest.mark.slow

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python")
SETTINGS = (
    "method.epochs=2", "method.batch_size=8", "method.warmup_steps=0", "method.lr=0.003", "method.keep=best",
    "method.group_by_length=false", "method.max_length=40", "model.precision=fp32", "data.shots=null", "threads=1",
)  # fmt: skip

# Ends one process after the first step of the second epoch: by an error, or as the kernel does if memory runs out.
BREAKING = """
import os, signal, sys
from transformers import TrainerCallback
from clipadapt.core.files import pacing
from textsent.methods import _trainer

pacing.SECONDS, pacing.SHARE = 0.0, 1e12  # a checkpoint after every epoch

class Breaking(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 9 and args.process_index == int(os.environ["BREAK_RANK"]):
            if os.environ["BREAK_BY"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("out of memory, on purpose")

own = _trainer._Trainer.__init__
def init(self, *a, callbacks, **k):
    own(self, *a, callbacks=[*callbacks, Breaking()], **k)
_trainer._Trainer.__init__ = init
from textsent.cli import main
main()
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A text model without dropout, and texts whose number a batch of 8 divides."""
    import torch
    from transformers import AutoModel, DistilBertConfig

    from tests.unit.textsent import tiny

    folder = tmp_path_factory.mktemp("processes")
    config = DistilBertConfig(
        **tiny.SIZES, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=40,
        dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModel.from_config(config).save_pretrained(folder / "model")
    tiny.tiny_tokenizer().save_pretrained(folder / "model")
    rows = ["text,label,split"]
    for split, n, seed in (("train", 64, 0), ("val", 21, 1), ("test", 30, 2)):
        own = make_split(n, seed)
        rows += [
            f"{x},{('bad', 'good')[y]},{split}"
            for x, y in zip(own.inputs.examples, own.labels, strict=True)
        ]
    (folder / "texts.csv").write_text("\n".join(rows) + "\n")
    return folder


def words(case: Path, out: Path, *more: str) -> list[str]:
    named = ["--model", str(case / "model"), "--dataset", f"csv:{case / 'texts.csv'}"]
    settings = [w for s in (*SETTINGS, *more) for w in ("--set", s)]
    return ["run", "full_finetune-quick", *named, *settings, "--seeds", "1", "--out", str(out)]


def start(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", **environ},
    )


def only(out: Path):
    store = RunStore(out)
    (record,) = store.load_all()
    return record, store.run_dir(record)


def scores(folder: Path) -> np.ndarray:
    return RunStore.load_predictions(folder).scores


@pytest.fixture(scope="module")
def together(case, console):
    """The output folder of an undisturbed fit in two processes, and what it printed."""
    done = start(console("textsent"), *words(case, case / "together"), "--json")
    assert done.returncode == 0, done.stderr
    return case / "together", done


def test_two_processes_give_the_fit_of_one(case, cli, together, tmp_path):
    out, done = together
    alone = cli(*words(case, tmp_path / "one"), program="textsent")

    assert alone.code == 0, alone.err
    (printed,) = json.loads(done.stdout)["records"]  # by one process
    two, folder = only(out)
    one, other = only(tmp_path / "one")
    assert printed["run_id"] == two.run_id != one.run_id
    assert (two.environment.devices, one.environment.devices) == (("cpu", "cpu"), ())
    assert two.selection.epoch == one.selection.epoch
    assert two.metrics["accuracy"].value == one.metrics["accuracy"].value > 0.6
    np.testing.assert_allclose(scores(folder), scores(other), atol=2e-5)
    # The Trainer's val loss counts the texts twice that fill the last batches of val.
    for name, rtol in (("train_loss", 1e-5), ("val_accuracy", 0), ("val_loss", 0.02)):
        values = [
            [json.loads(line)[name] for line in (at / "history.jsonl").read_text().splitlines()]
            for at in (folder, other)
        ]
        np.testing.assert_allclose(values[0], values[1], rtol=rtol, err_msg=name)
    assert not (out / ".work").exists()
    assert done.stderr.count("learning curve") <= 1


def test_a_killed_process_ends_all_with_one_message_and_the_fit_resumes(
    case, console, together, tmp_path
):
    killed = start(
        sys.executable, "-c", BREAKING, *words(case, tmp_path), BREAK_BY="kill", BREAK_RANK="1"
    )

    own = said_by_us(killed)
    assert (
        own.count("error: another one of the 2 processes of this fit has ended or does not answer")
        == 1
    )
    assert "]: Traceback" not in own  # torch puts the rank before each line
    assert killed.returncode == 1
    assert not list(tmp_path.rglob("record.json"))
    assert len(list(tmp_path.rglob("rng_state_1.pth"))) == 1

    resumed = start(console("textsent"), *words(case, tmp_path))

    assert resumed.returncode == 0, resumed.stderr
    np.testing.assert_array_equal(scores(only(tmp_path)[1]), scores(only(together[0])[1]))


def test_an_error_of_a_process_is_shown_once(case, tmp_path):
    failed = start(
        sys.executable, "-c", BREAKING, *words(case, tmp_path), BREAK_BY="error", BREAK_RANK="1"
    )

    own = said_by_us(failed)
    assert failed.returncode == 1
    assert own.count("rank 1 of 2 failed:") == 1
    assert own.count("RuntimeError: out of memory, on purpose") == 1
    assert own.count("]: Traceback") == own.count("[rank1]: Traceback") == 1, own
    assert not list(tmp_path.rglob("record.json"))


def test_a_method_that_one_process_fits_is_refused_once(console, tmp_path):
    done = start(
        console("textsent"), "run", "head-quick", "--set", "data.shots=4", "--out", str(tmp_path)
    )

    own = said_by_us(done)
    assert own.count("error: ") == 1
    assert "text/head is fitted by one process, but 2 were started" in own
    assert (done.stdout, list(tmp_path.iterdir())) == ("", [])


def said_by_us(done: subprocess.CompletedProcess[str]) -> str:
    """Return stderr up to the report of the launcher."""
    return done.stderr.partition("torch.distributed.elastic")[0]
