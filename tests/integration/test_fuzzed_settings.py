"""A thousand wrong settings over every command that takes some: a message or a result, never a traceback."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipadapt.core.api.effects import model_within
from clipadapt.core.api.registry import METHODS
from clipadapt.core.experiments import config, shipped
from clipadapt.core.experiments.settings import ExperimentConfig
from clipadapt.core.experiments.sweep import SweepConfig

pytestmark = pytest.mark.slow


ODD = [
    "2024-13-45", "2024-01-01", "!!int abc", "!!python/object:os.system x", "!!timestamp 1", "9" * 5000,
    "-" + "9" * 20, "1e400", "1e11", "-1", "0", "0.5", "true", "false", "[a]", "[true]", "[null]", "[[1], {a: b}]",
    "{a: b}", "{}", "[]", "{a: [1, {b: c}]}", "&a [*a]", "*a", "[" * 3000, "{<<: [1]}", "\x00", "a\x00b",
    "~nobody0/x", "folder:~nobody0/x", "csv:~nobody0/x", "local-dir:~nobody0/x", "x" * 300, "folder:" + "x" * 300,
    "csv:" + "x" * 300, "x" * 5000, "\ud800", '"\\ud800"', '"\\0"', '"a\\nb"', ".inf", "-.inf", ".nan", "", " ",
    "null", "~", "${oc.env:HOME}", "${a.b}", "???", "a|b\n# c", "\x1b[31mx", "zlib", "csv:x?encoding=zlib", "..", "/",
    "/dev/zero", "folder:/dev/zero", "-", "--set", "é", "on", "off", "1:30", "0x10", "007", "é" * 200, "a: b: c", "'",
]  # fmt: skip
OFFLINE = {"clip": "synthetic", "text": "rotten_tomatoes:offline"}
PROGRAM = {"clip": "clipadapt", "text": "textsent"}


def keys_of(model, prefix=""):
    """Every dotted key of a config class, with those of the sections in it."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        inner = model_within(field.annotation)
        if inner is not None:
            yield from keys_of(inner, f"{prefix}{name}.")


def odd_settings(rng, model, method):
    keys = [*keys_of(model), *keys_of(METHODS.get(method).Config, "method."), "method", "x", "a.b"]
    return [f"{rng.choice(keys)}={rng.choice(ODD)}" for _ in range(rng.choice([1, 1, 1, 2]))]


@pytest.fixture
def shot(cli, tmp_path, monkeypatch):
    """Run a command and check its manners; return the exit code."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"

    def call(track, *arguments, settings=(), json_too=False):
        words = [w for s in settings for w in ("--set", s)]
        result = cli(*arguments, *words, program=PROGRAM[track])
        told = f"{arguments} {settings!r}\n{result.err[-2000:]}"
        assert result.code in {0, 2}, told
        assert "Traceback" not in result.err, told
        assert len(result.err) < 20_000, told
        if result.code == 2:
            assert result.err.count("error: ") == 1, told
            assert result.out == "", told
            assert not out.exists(), told
        elif json_too:
            json.loads(result.out)
        return result.code

    return call


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
VALUES = st.sampled_from(ODD) | st.text(max_size=40) | NESTED.map(json.dumps)
MANY = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.parametrize("track", ["clip", "text"])
def test_validate(shot, track):
    names = sorted(shipped.config_names(track))
    own = f"data.name={OFFLINE[track]}"
    methods = {n: config.load([n], [own], track=track).method_name for n in names}
    keys = {
        n: [*keys_of(ExperimentConfig), *keys_of(METHODS.get(m).Config, "method."), "method", "x", "a.b"]
        for n, m in methods.items()
    }  # fmt: skip

    @settings(max_examples=400, **MANY)
    @given(data=st.data())
    def fuzz(data):
        recipe = data.draw(st.sampled_from(names))
        pairs = data.draw(
            st.lists(st.tuples(st.sampled_from(keys[recipe]), VALUES), min_size=1, max_size=2)
        )
        odd = [f"{key}={value}" for key, value in pairs]
        shot(track, "validate", recipe, "--json", json_too=True, settings=[own, *odd])

    fuzz()


@pytest.mark.parametrize("track", ["clip", "text"])
def test_sweeps(shot, track, tmp_path, monkeypatch):
    """Of one file, and of the same with odd values in place of its own."""
    rng = random.Random(f"bench {track}")
    method = "zero_shot" if track == "clip" else "tfidf_svm"
    lines = {
        "datasets": f"[{OFFLINE[track]}]", "methods": f"[{method}]",
        "models": "[stitched]" if track == "clip" else "[minilm]",
        "shots": "[null]", "seeds": "[1]", "protocol": "null", "eval_on": "null", "exclude": "[]", "include": "[]",
        "parts": "[]", "settings": "{evaluation.calibrate: false}",
    }  # fmt: skip
    # Only what stands before opened data and weights is meant here.
    monkeypatch.setattr("clipadapt.core.cli.bench.print_plan", lambda *args, **more: None)
    wrong = ["5", "{evaluation: 5}", "{evaluation: null}", "{evaluation.also: 5}", "{'': 5}", "{a..b: 1}", "[5]",
             "[null]", "[{recipe: zero_shot, set: {a.b: 1, a: 2}}]", "[{datasets: [x]}]", "{'*': 5}"]  # fmt: skip
    for index in range(120):
        key = rng.choice(sorted(lines))
        odd = rng.choice(wrong + [o for o in ODD if "\x00" not in o and "\ud800" not in o])
        text = "\n".join(f"{k}: {odd if k == key else v}" for k, v in lines.items())
        (tmp_path / f"s{index}.yaml").write_text(text, encoding="utf-8")
        shot(track, "bench", f"s{index}.yaml", "--dry-run", "--out", "out")
        over = odd_settings(rng, rng.choice([SweepConfig, ExperimentConfig]), f"{track}/{method}")
        shot(track, "bench", "openmoji" if track == "clip" else "sentiment-quick", "--dry-run",
             "--out", "out", settings=over)  # fmt: skip


def test_zeroshot(shot, tiny_clip):
    rng = random.Random("zeroshot")
    for index in range(60):
        option = rng.choice(["--model", "--dataset", "--templates", "--classnames", "--set"])
        own = {"--model": tiny_clip, "--dataset": "synthetic:2x4", "--limit": "1"}
        odd = rng.choice(ODD)
        if option == "--set":
            odd = odd_settings(rng, ExperimentConfig, "clip/zero_shot")[0]
        words = [w for k, v in (own | {option: odd}).items() for w in (k, v)]
        if odd.startswith("--") or not odd.strip():
            continue  # what the shell's own words mean is Click's affair
        code = shot("clip", "zeroshot", *words, "--out", "out" if index else "first")
        if code == 0:
            _forget(Path("out"))


def test_run(shot, tiny_clip):
    rng = random.Random("run")
    for track, recipe, own in (
        ("clip", "linear_probe-quick", [f"model.name={tiny_clip}", "data.name=synthetic:2x8"]),
        ("text", "tfidf_svm-quick", ["data.name=rotten_tomatoes:offline", "data.shots=4"]),
    ):
        method = config.load([recipe], own, track=track).method_name
        for _ in range(40 if track == "clip" else 12):
            odd = odd_settings(rng, ExperimentConfig, method)[:1]
            fixed = ["seeds=[1]", "threads=1", "data.limit=2", "evaluation.leakage=off"]
            code = shot(track, "run", recipe, "--out", "out", settings=[*own, *fixed, *odd])
            if code == 0:
                _forget(Path("out"))


def test_explore(shot):
    rng = random.Random("explore")
    for odd in rng.sample([o for o in ODD if o.strip() and not o.startswith("-")], 25):
        shot("text", "explore", "--dataset", odd, "--out", "out")


def _forget(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
