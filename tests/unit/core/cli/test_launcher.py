"""Commands that a launcher started in several processes."""

from __future__ import annotations

import pytest

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.processes import Launch, launched
from tests.unit.textsent.tiny import make_task
from textsent.methods.full_finetune import FullFinetuneConfig


@pytest.fixture
def rank(monkeypatch):
    """Pretend that a launcher started this process."""

    def pretend(number: int, count: int = 2) -> None:
        for name, value in (("RANK", number), ("LOCAL_RANK", number), ("WORLD_SIZE", count)):
            monkeypatch.setenv(name, str(value))

    return pretend


def test_a_process_knows_its_place(rank, monkeypatch):
    assert launched() is None
    rank(0, 1)
    assert launched() is None  # alone
    rank(1, 4)
    assert launched() == Launch(1, 4, 1)
    monkeypatch.setenv("RANK", "first")
    assert launched() is None


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("textsent", ("ls", "methods")),
        ("textsent", ("bench", "sentiment-quick")),
        ("clipadapt", ("zeroshot", "--model", "stitched", "--dataset", "synthetic:2x4")),
        ("clipadapt", ("run", "coop-quick")),
    ],
)
def test_what_one_process_does_is_refused_by_the_first_one_alone(cli, rank, program, arguments):
    rank(0)
    first = cli(*arguments, program=program)
    rank(1)
    second = cli(*arguments, program=program)

    named = f"'{program} {arguments[0]}' runs in one process, but the launcher started 2"
    assert named in first.err
    assert first.err.count("error:") == 1
    assert (first.code, second.code) == (2, 2)
    assert (second.out, second.err) == ("", "")


def test_a_batch_is_shared_equally(rank):
    config = FullFinetuneConfig(batch_size=6, warmup_steps=0)
    for count in (2, 3, 6):
        rank(0, count)
        config.check(make_task())
    rank(0, 4)

    with pytest.raises(
        ConfigError, match=r"batch_size is 6, which 4 processes cannot share equally"
    ):
        config.check(make_task())
