"""Every benchmark script runs in its smoke mode and writes a whole table; what it says of the figures is right."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import pytest

from tests.contract import fake_device as simulated

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
# Script -> what the first two cells of its rows must hold, and how many rows a quick run has.
QUICK: dict[str, tuple[set[str], int]] = {
    "zeroshot": ({"ours, bf16", "ours, fp32", "clip-benchmark --no_amp"}, 4),
    "coop": ({"reference, fp32", "ours, fp32", "ours, bf16"}, 6),
    "lora": ({"reference, fp32", "ours, fp32", "ours, bf16"}, 6),
    "probe": ({"scikit-learn", "loop in Python", "ours"}, 4),
    "classifiers": ({"gda", "transclip", "taskres", "official way", "ours"}, 34),
    "memory": ({"4", "8"}, 2),
    "pipeline": ({"pipeline", "tower alone", "decode alone"}, 6),
    "growth": ({"40 images", "3 classes", "2 shots"}, 14),
    "sweep": ({"every fast path", "all off"}, 2),
    "report": ({"`table`, the second", "`report`", "40 records"}, 10),
    "bookkeeping": ({"the same again, complete", "20 runs"}, 6),
    "encode": ({"folder", "tar files", "hub", "DataLoader and open_clip", "`encode`"}, 6),
    "store": ({"store every row", "which rows are stored", "50", "100"}, 12),
    "checkpoints": ({"CLIP-LoRA, `a tiny model`", "full fine-tuning of texts, `minilm`"}, 3),
    "startup": ({"zeroshot, cold", "zeroshot, warm", "`--help`", "`clipadapt`"}, 0),
}
SLOW = {
    "bookkeeping",
    "checkpoints",
    "encode",
    "growth",
    "memory",
    "report",
    "startup",
    "sweep",
    "zeroshot",
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Import a script as it is when it runs: its folder is where modules are looked for first."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        path = getattr(sys.modules[name], "__file__", None) or ""
        if path.startswith(str(BENCH)) or name == "baselines":
            del sys.modules[name]


def tables(text: str) -> list[list[list[str]]]:
    """The Markdown tables of a text, as rows of cells without the line of marks."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        inside = line.startswith("|")
    return [[rows[0], *rows[2:]] for rows in found]


@pytest.fixture
def hub_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore where the hub is: `encode` sends its process to a hub of its own."""
    from huggingface_hub import constants

    for name in vars(constants):
        if name in {"ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE", "HF_HUB_CACHE", "HF_HUB_OFFLINE"}:
            monkeypatch.setattr(constants, name, getattr(constants, name))


def checked(text: str) -> list[list[str]]:
    """Check the frame of a result and return all rows of its tables."""
    assert text.startswith("# ")
    assert "cores (" in text
    assert "commit" in text
    assert "/tmp" not in text
    found = tables(text)
    assert found
    for head, *rows in found:
        assert rows
        assert all(len(row) == len(head) for row in rows)
        assert all(row[0] for row in rows)
    return [row for _, *rows in found for row in rows]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in QUICK]
)
def test_a_quick_run_writes_its_table(name, script, hub_settings, tmp_path, capsys):
    target = tmp_path / "new" / "table.md"
    script(name).main(["--quick", "--output", str(target)])

    text = target.read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    assert "mean nothing" in text  # nobody takes a smoke run for a measurement
    rows = checked(text)
    expected, count = QUICK[name]
    assert expected <= {cell for row in rows for cell in row[:2]}
    assert not count or len(rows) == count
    numbers = [c for row in rows for c in row if c.replace(",", "").replace(".", "").isdigit()]
    assert all(float(n.replace(",", "")) >= 0 for n in numbers)
    assert len(numbers) >= len(rows)


@pytest.mark.slow
def test_a_measurement_runs_in_a_process_of_its_own(script, tmp_path, capsys, monkeypatch):
    """A setting of ours reaches the measurement, and a wrong one ends the script with its message."""
    target, coop = tmp_path / "table.md", script("coop")
    given = ["--quick", "--isolate", "--augment", "none", "--output", str(target)]
    pairs = {"reference, fp32": ("reference", "fp32"), "ours, fp32": ("ours", "fp32")}

    monkeypatch.setattr(coop, "VARIANTS", pairs)
    coop.main([*given, "--set", "method.class_chunk=2"])

    printed = capsys.readouterr().out
    assert "each in a new process" in printed
    assert "Changed settings of clipadapt: method.class_chunk=2." in printed
    assert len(checked(target.read_text(encoding="utf-8"))) == 2

    monkeypatch.setattr(coop, "VARIANTS", {"ours, fp32": ("ours", "fp32")})
    with pytest.raises(SystemExit) as end:
        coop.main([*given, "--set", "method.class_chnk=2"])
    assert "class_chunk" in str(end.value.code)


@pytest.mark.parametrize("name", QUICK)
def test_help(name, script, capsys):
    with pytest.raises(SystemExit) as end:
        script(name).main(["--help"])

    assert end.value.code == 0
    assert "--quick" in capsys.readouterr().out


def test_repeats_are_checked(script, capsys):
    with pytest.raises(SystemExit) as end:
        script("probe").main(["--quick", "--repeats", "0"])

    assert end.value.code == 2
    assert "--repeats must be at least 1 (got 0)" in capsys.readouterr().err


# ---------------------------------------------------------------- what the scripts reckon


def test_ways_alternate_and_medians_are_taken(script, tmp_path):
    common = script("_common")
    seen: list[str] = []

    def measure(settings: dict[str, Any]) -> dict[str, Any]:
        seen.append(settings["variant"])
        return {"seconds": float(len(seen)), "memory": None}

    bench = common.Bench("probe", "Doc.", {"one": measure})
    bench.parse(["--no-isolate", "--repeats", "3"])
    with bench.scratch():
        runs = bench.alternate({w: ("one", {"variant": w}) for w in "ab"})

    assert "".join(seen) == "abbaab"
    assert runs["a"].of() == 4.0
    assert runs["b"].of() == 3.0
    assert runs["a"].span() == "1 to 5"
    assert runs["a"].memory == "not measured"


def test_each_measurement_has_an_empty_store_unless_it_names_one(script, monkeypatch):
    common = script("_common")
    monkeypatch.setenv(common.STORE, "mine")
    found: list[str] = []

    def measure(settings: dict[str, Any]) -> dict[str, Any]:
        found.append(str(common.os.environ[common.STORE]))
        return {}

    bench = common.Bench("probe", "Doc.", {"one": measure})
    bench.parse(["--no-isolate"])
    with bench.scratch() as folder:
        bench.measure("one", {})
        bench.measure("one", {})
        bench.measure("one", {"store": str(folder / "kept")})

    assert len(set(found)) == 3
    assert "mine" not in found
    assert found[2].endswith("kept")
    assert common.os.environ[common.STORE] == "mine"


def test_a_ragged_table_is_refused(script):
    with pytest.raises(ValueError, match="rows without 2 cells"):
        script("_common").table(["a", "b"], [["1", "2"], ["3"]])


def test_the_clock_leaves_out_the_first_steps(script):
    marks = iter([0.0, 5.0, 7.0, 8.0])
    clock = script("_device").Clock(mark=lambda: next(marks))
    with clock.track("encode images", 3, "images") as bar:
        bar.advance(3)  # no step
    with clock.track("coop", 4, "steps") as bar:
        bar.advance(0)  # the steps of a checkpoint, of which there are none
        for _ in range(4):
            bar.advance(1, loss=0.5)

    assert clock.seconds(1) == [2.0, 1.0]
    assert clock.first > 0


def test_a_counted_fit_ends_after_its_second_step(script):
    device = script("_device")
    import torch

    a, b = torch.ones(3, 4), torch.ones(4, 5)
    done: list[int] = []

    def fit(clock: Any) -> None:
        with clock.track("fit", 9, "steps") as bar:
            for i in range(9):
                done.append(i)
                for _ in range(1 + i):  # the set-up and the first step are not counted
                    a @ b
                bar.advance(1)

    assert device.counted_step(fit) == 2 * 2 * 3 * 4 * 5
    assert done == [0, 1]


def test_the_fused_attention_layer_is_counted(script):
    """Torch's fast path and its plain path have the same operations."""
    import torch

    layer = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(3, 7, 16)

    def counted() -> int:
        return script("_device").counted(lambda: layer(x, x, x, need_weights=False))

    with torch.no_grad():
        fused = counted()
    projections, attention = 3 * 7 * 16 * 16 * 4, 2 * 3 * 7 * 7 * 16
    assert fused == 2 * (projections + attention) == counted()


def test_the_share_of_the_peak_is_reckoned(script):
    common = script("_common")
    runs = common.Runs([
        {"seconds": 2.0, "flop": 6e9, "memory": 3 << 20, "reserved": 5 << 20},
        {"seconds": 2.0},
    ])

    assert runs.share(12e9) == ["3", "25%"]
    assert runs.memory == "3 (5 reserved)"
    assert common.Runs([{"seconds": 2.0}]).share(12e9) == ["", ""]


@pytest.mark.parametrize(
    ("asked", "found", "expected"),
    [
        ("auto", {}, "cpu"),
        ("auto", {"mps"}, "cpu"),
        ("auto", {"cuda"}, "cuda"),
        ("cuda:1", {"cuda"}, "cuda:1"),
    ],
)
def test_auto_is_a_gpu_if_there_is_one(asked, found, expected, script, monkeypatch):
    from clipadapt.tensor import devices

    accelerators = {kind: devices.Accelerator(2, bf16=True) for kind in found}
    monkeypatch.setattr(devices, "accelerators", lambda: accelerators)
    monkeypatch.setattr(devices.hardware, "accelerator_possible", lambda: True)

    assert script("_device").resolved(asked) == expected


@pytest.mark.parametrize("device", ["cuda:9", "gpu", "mps"])
def test_a_device_that_is_not_there_is_one_message(device, script, capsys):
    with pytest.raises(SystemExit) as end:
        script("coop").main(["--quick", "--device", device])

    assert end.value.code == 2
    message = capsys.readouterr().err.splitlines()[-2:]
    assert "--device: " in message[0]
    assert "use " in message[1]


# What runs on the CPU on every machine: scikit-learn, our solver of the probe, our search, decoding.
ON_HOST: Final = {
    *("sweep ours", "sweep scikit-learn", "optimum", "search ours", "peak fp32 cpu"),
    *("decode alone bf16", "decode alone fp32"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coop", "pipeline", "probe"])
def test_both_sides_run_on_the_gpu(name, script, tmp_path, monkeypatch, capsys):
    """On a simulated card, which refuses tensors of two devices in one operation; no product is left to the CPU."""
    import torch

    from clipadapt.core.files import hardware

    common = script("_common")
    for function, value in (
        ("get_device_name", "A card"), ("max_memory_allocated", 3 << 20), ("synchronize", None),
        ("max_memory_reserved", 5 << 20), ("reset_peak_memory_stats", None), ("empty_cache", None),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, function, lambda *_, value=value: value)
    monkeypatch.setattr(hardware, "_torch_on_cuda", lambda: torch)
    found: dict[str, Counter[str]] = {}
    measure = common.Bench._run

    def watched(bench: Any, part: str, settings: dict[str, Any]) -> dict[str, Any]:
        simulated.products.clear()
        result = measure(bench, part, settings)
        which = (settings.get(key, "") for key in ("case", "side", "variant", "precision", "on"))
        found[" ".join(filter(None, (part, *which)))] = Counter(simulated.products)
        return result

    monkeypatch.setattr(common.Bench, "_run", watched)
    target = tmp_path / "table.md"
    with simulated.fake_device("cuda", monkeypatch):
        script(name).main(["--quick", "--device", "cuda", "--output", str(target)])

    assert "device: A card (cuda)" in capsys.readouterr().out
    assert "3 (5 reserved)" in target.read_text(encoding="utf-8")
    on_card = {key for key, count in found.items() if count["cuda"] and not count["cpu"]}
    others = found.keys() - on_card
    assert on_card
    assert others <= ON_HOST, others


def test_pictures_are_different_files(script, tmp_path):
    common = script("_common")
    common.write_images(tmp_path, "test", 9, 16, ("a", "b"), distinct=4)
    common.write_images(tmp_path, "train", 4, 16, ("a", "b"))

    files = sorted(tmp_path.glob("*/*/*.jpg"))
    assert len(files) == 13
    assert len({f.read_bytes() for f in files}) == 13


def test_class_names_are_as_many_and_differ(script):
    names = script("_common").class_names(1000)

    assert len(names) == len(set(names)) == 1000
    assert not [n for n in names if "/" in n]


def test_the_objective_is_least_at_scikit_learns_optimum(script):
    from sklearn.linear_model import LogisticRegression

    probe, common = script("probe"), script("_common")
    x, y = common.clusters(90, 8, 3)
    fitted = LogisticRegression(C=2.0, max_iter=1000, tol=1e-8).fit(x, y)
    best = probe.objective(fitted.coef_, fitted.intercept_, x, y, 2.0)

    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = fitted.coef_ + rng.normal(0, 0.05, fitted.coef_.shape)
        assert probe.objective(moved, fitted.intercept_, x, y, 2.0) > best
    by_hand = np.log(3)  # no weights: every class is as likely
    assert probe.objective(np.zeros((3, 8)), np.zeros(3), x, y, 2.0) == pytest.approx(by_hand)


@pytest.mark.parametrize(("gap", "verdict"), [(5e-5, "(within 0.0001)"), (2e-4, "(NOT within")])
def test_an_optimum_that_is_none_is_told(gap, verdict, script):
    probe, common = script("probe"), script("_common")
    runs = {
        "scikit-learn": common.Runs([{"objective": [0.5, 0.7], "accuracy": [0.9, 0.9]}]),
        "ours": common.Runs([{"objective": [0.5, 0.7 + gap], "accuracy": [0.9, 0.8]}]),
    }

    text = probe.compared_probe(runs)

    assert verdict in text
    assert "equal val accuracy at 50%" in text


@pytest.mark.parametrize(("gap", "verdict"), [(5e-5, "(within"), (2e-4, "(NOT"), (-2e-4, "(NOT")])
def test_what_is_far_from_the_optimum_itself_is_told(gap, verdict, script):
    assert verdict in script("probe").compared_optimum([0.5, 0.7 + gap], [0.5, 0.7])


def test_a_search_that_differs_is_told(script):
    probe, common = script("probe"), script("_common")
    runs = {
        "loop in Python": common.Runs([{"pair": [1.0, 2.0], "grid": [[50.0, 60.0]]}]),
        "ours": common.Runs([{"pair": [1.0, 3.0], "grid": [[50.0, 61.0]]}]),
    }

    text = probe.compared_search("work", runs)

    assert "ANOTHER pair" in text
    assert "50.00%" in text


def test_scores_that_differ_and_too_much_memory_are_problems(script):
    classifiers, common = script("classifiers"), script("_common")

    def found(side: str, memory: int | None, gap: float | None) -> list[str]:
        runs = common.Runs([{"memory": memory}])
        return classifiers.problems([classifiers.Line({"case": "gda"}, side, runs, None, gap)])

    assert not found("ours", 4 << 30, 5e-4)
    assert not found("ours", None, None)
    assert not found("official way", 9 << 29, None)
    assert found("ours", 9 << 29, 0.1) == [
        "gda: the scores differ by 0.1, at most 0.001 is allowed",
        "gda needed 4.50 GiB, at most 4 GiB are allowed",
    ]
    assert found("ours", 0, np.nan) == ["gda: the scores differ by nan, at most 0.001 is allowed"]
    nearly = classifiers.difference({"sample": [[1.0, 10.005]]}, {"sample": [[1.0, 10.0]]})
    assert nearly == pytest.approx(5e-4, rel=1e-2)


@pytest.mark.parametrize(
    ("speed", "share", "expected"),
    [(7.0, 0.1, "5x reached"), (1.2, 0.6, "limit of the"), (1.2, 0.1, "neither 5x nor the limit")],
)
def test_a_note_says_which_aim_was_reached(speed, share, expected, script):
    assert script("classifiers").verdict(speed, share).startswith(expected)


def test_every_classifier_on_features_is_compared(script):
    from clipadapt.core.api.registry import METHODS

    classifiers = script("classifiers")
    others = {"zero_shot", "zero", "tpt", "lora", "full_finetune", "wise_ft"}
    prompts = {"coop", "cocoop", "kgcoop", "prograd", "promptsrc", "maple", "ivlp"}
    known = {n.removeprefix("clip/") for n in METHODS.names() if n.startswith("clip/")}

    assert {
        case.method or name for name, case in classifiers.CASES.items()
    } == known - others - prompts
    assert set(classifiers.CASES) == set(script("_arithmetic").FIT)


def test_products_are_counted_by_hand(script):
    arithmetic, classifiers = script("_arithmetic"), script("classifiers")
    sizes = arithmetic.Sizes(C=10, N=40, Q=100, D=8, W=12)

    def gflop(name: str) -> float:
        every = arithmetic.products(name, sizes, classifiers.config_of(name))
        return sum(p.flop for p in every)

    logits = 2 * 100 * 8 * 10
    assert gflop("tip_adapter") == logits + 2 * 100 * 8 * 40
    assert gflop("taskres") == logits + 2 * 2 * 40 * 8 * 10  # one batch, forward and backward
    assert gflop("gda") == pytest.approx(logits + 8 * 8 * 40 + 8**3 / 3 + 2 * 8 * 8 * 10)


def test_the_entries_of_a_cache_are_counted_at_every_query(script):
    predicted = np.array([0, 1, 0, 0, 1, 0])
    by_hand = [sum(min((predicted[: i + 1] == c).sum(), 2) for c in (0, 1)) for i in range(6)]

    assert script("_arithmetic").live_entries(predicted, 2) == sum(by_hand)


def test_tables_of_a_sweep_that_differ_are_told(script):
    compared = script("sweep").compared
    fast = {"accuracy": {"a": 0.5, "b": 0.25}}

    assert "all 2 accuracies agree" in compared(fast, {"accuracy": {"a": 0.5, "b": 0.25}})
    assert "1 of 2 accuracies DIFFER, by at most 25.00%" in compared(
        fast, {"accuracy": {"a": 0.5, "b": 0.5}}
    )
    assert "DIFFERENT runs" in compared(fast, {"accuracy": {"a": 0.5}})


def test_a_profile_of_imports_adds_up_by_package(script):
    text = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       200 |        200 |   torch.nn\n"
        "import time:      1000 |       1200 | torch\n"
        "import time:        50 |         50 | typer\n"
    )

    assert script("startup").profile(text) == pytest.approx({"torch": 0.0012, "typer": 5e-05})


def test_the_package_counts_as_it_did_before_numpy_refused(script):
    """The function that is put in its place: top-1 and top-5 of known logits."""
    pytest.importorskip("clip_benchmark", reason="pip install 'clipadapt[bench]'")
    import torch

    script("_common")
    package = importlib.import_module("baselines.zero_shot").package()
    logits = torch.eye(6)[[0, 1, 2, 3]] + torch.arange(6) * 1e-3

    assert package.accuracy(logits, torch.tensor([0, 1, 5, 0]), topk=(1, 5)) == [0.5, 0.75]


def test_the_products_of_one_step_are_recorded(script):
    import torch
    import torch.nn.functional as F

    found = script("_products")
    products, x = found.Products(), torch.ones(2, 3, requires_grad=True)
    q = torch.ones(2, 4, 5, 6, requires_grad=True)
    with products:
        x @ x.T  # before the first loss
        products.step("loss", 0.0)
        products.step("grad", {})
        F.linear(x, torch.ones(7, 3), torch.ones(7)).sum().backward()
        F.scaled_dot_product_attention(q, q, q).sum().backward()
        with pytest.raises(found.StepEndedError):
            products.step("loss", 0.0)

    own = torch.float32
    assert products.found == {
        (1, 2, 3, 7, own): 1,
        (1, 2, 7, 3, own): 1,
        (8, 5, 6, 5, own): 3,
        (8, 5, 5, 6, own): 3,
    }
    assert 0 < found.seconds((8, 5, 6, 5, own)) < 1
