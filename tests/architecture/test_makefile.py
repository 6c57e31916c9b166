"""The targets that the texts name exist, and the quick one leaves out what it says."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_target_in_a_text_exists(name):
    named = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / name).read_text("utf-8"), re.MULTILINE)
    known = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))

    assert named
    assert set(named) <= known


def test_the_quick_target_leaves_out_slow_tests_and_whole_commands():
    (folders,) = re.findall(r"^FAST := (.*)$", MAKEFILE, re.MULTILINE)
    (recipe,) = re.findall(r"^test-fast:.*\n\t(.*)$", MAKEFILE, re.MULTILINE)

    assert '-m "not slow"' in recipe
    assert recipe.endswith("$(FAST)")
    for folder in folders.split():
        assert (ROOT / folder).is_dir(), folder
        assert folder not in {"tests/docs", "tests/integration", "tests/reliability"}
