"""Checkpoints take a small share of a fit, however large they are and however slow the disk is."""

from __future__ import annotations

import pytest

from clipadapt.core.api.context import Meter
from clipadapt.core.files import pacing
from clipadapt.core.files.pacing import BYTES_PER_SECOND, SECONDS, SHARE, Pacing


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pacing, "time", made)
    return made


def simulate(clock: Clock, pace: Pacing, step: float, costs: list[float], end: float) -> int:
    """Train in steps and write when due, with these costs in turn; return the number of writes."""
    count = 0
    while clock.now < end:
        clock.now += step
        if pace.due():
            with pace.writing():
                clock.now += costs[count % len(costs)]
            count += 1
            assert pace.spent <= 0.03 * clock.now
    return count


@pytest.mark.parametrize("step", [0.2, 7.0, 90.0])
@pytest.mark.parametrize("cost", [0.01, 0.4, 3.0, 20.0])
def test_checkpoints_take_less_than_three_percent(clock: Clock, cost: float, step: float) -> None:
    size = int(cost * BYTES_PER_SECOND)
    count = simulate(clock, Pacing(size, Meter()), step, [cost], 10_000.0)

    most = min(10_000 / max(SECONDS, step), SHARE * 10_000 / cost)
    assert 0.7 * most - 1 <= count <= most + 1


def test_a_disk_that_is_slower_than_assumed_is_asked_less_often(clock: Clock) -> None:
    pace = Pacing(int(2 * BYTES_PER_SECOND), Meter())
    assert simulate(clock, pace, 0.5, [2.5, 3.5], 1000.0) == 6


def test_a_short_fit_writes_none(clock: Clock) -> None:
    assert simulate(clock, Pacing(1000, Meter()), 0.5, [0.01], SECONDS - 0.5) == 0
    assert simulate(clock, Pacing(1000, Meter()), 0.5, [0.01], 2 * SECONDS + 1) == 1


def test_a_large_one_waits_before_its_cost_is_known(clock: Clock) -> None:
    pace = Pacing(int(2 * BYTES_PER_SECOND), Meter())
    clock.now = 2 / SHARE - 0.1
    assert not pace.due()
    clock.now += 0.2
    assert pace.due()


def test_a_write_that_fails_is_counted(clock: Clock) -> None:
    meter = Meter()
    pace = Pacing(0, meter)

    def fail() -> None:
        with pace.writing():
            clock.now = 4.0
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert pace.cost == pace.spent == 4.0
    assert "checkpoints" in meter.stages
    clock.now = 2 * 4.0 / SHARE - 0.1
    assert not pace.due()
    clock.now += 0.2
    assert pace.due()
