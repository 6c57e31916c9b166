"""Calls with a time limit, and reachability of a server."""

from __future__ import annotations

import time

import pytest

from clipadapt.core.files.network import unreachable, within


def test_a_call_within_its_time_returns_or_raises():
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)


def test_a_slow_call_is_left_behind():
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        within(0.1, lambda: time.sleep(2))
    assert time.monotonic() - begun < 1.5


def test_a_closed_port_is_unreachable():
    assert "refused" in unreachable("http://127.0.0.1:9/x")
