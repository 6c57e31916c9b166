"""Few-shot runs learn from what they state, and settings that cannot serve them are refused before any work."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clipadapt.core.api.flags import FLAGS
from clipadapt.core.scoring import calibration


def run(recipe, model, data, out, *settings):
    given = [f"model.name={model}", f"data.name={data}", "seeds=[1]", *settings]
    return ["run", recipe, *(w for s in given for w in ("--set", s)), "--out", out, "--json"]


@pytest.fixture
def folder(pictures):
    return f"folder:{pictures}"


# ---------------------------------------------------------------- the refit of the linear probe


@pytest.mark.parametrize(
    "recipe", ["linear_probe-quick", "linear_probe", "linear_probe-clip_benchmark"]
)
def test_a_few_shot_probe_learns_from_its_shots_alone(
    cli, records, recipe, tiny_clip, folder, tmp_path
):
    (record,) = records(cli(*run(recipe, tiny_clip, folder, tmp_path / "r", "data.shots=2")))

    assert (record["data"]["n_train"], record["data"]["n_val"]) == (6, 6)
    assert "refit_on_val" not in record["flags"]


def test_a_refit_that_is_asked_for_is_counted_and_flagged(
    cli, records, tiny_clip, folder, tmp_path
):
    words = run(
        "linear_probe-quick", tiny_clip, folder, tmp_path / "r", "data.shots=2", "method.refit=true"
    )  # fmt: skip
    (record,) = records(cli(*words))

    assert record["data"]["n_train"] == 12
    assert "refit_on_val" in record["flags"]
    assert "refit_on_val" in FLAGS


def test_a_manifest_is_a_few_shot_draw_too(cli, records, tiny_clip, folder, tmp_path):
    records(cli(*run("linear_probe-quick", tiny_clip, folder, tmp_path / "r", "data.shots=2")))
    (manifest,) = (tmp_path / "r").rglob("manifest.json")

    words = run(
        "linear_probe-quick", tiny_clip, folder, tmp_path / "s", f"data.manifest={manifest}"
    )
    (record,) = records(cli(*words))

    assert record["data"]["n_train"] == 6
    assert "refit_on_val" not in record["flags"]


@pytest.mark.parametrize("again", ["", "/./"])
def test_full_data_are_refitted_and_val_is_not_shown_as_held_out(
    cli, records, tiny_clip, folder, tmp_path, again
):
    dataset = f"dataset: '{folder}{again}', " if again else ""
    also = f"evaluation.also=[{{{dataset}split: val}}]"
    done = cli(*run("linear_probe-quick", tiny_clip, folder, tmp_path / "r", also))
    found = records(done)

    assert [r["evaluation"]["split"] for r in found] == ["test"]
    assert "(val) is not evaluated: the final fit is trained on it too" in done.err
    assert found[0]["data"]["n_train"] == 18 + 12  # six and four of three classes
    assert "refit_on_val" in found[0]["flags"]
    again = cli(*run("linear_probe-quick", tiny_clip, folder, tmp_path / "r", also))
    assert "1 of 1 runs were complete already" in again.err


def test_without_a_refit_val_is_shown(cli, records, tiny_clip, folder, tmp_path):
    words = run(
        "linear_probe-quick", tiny_clip, folder, tmp_path / "r",
        "method.refit=false", "evaluation.also=[{split: val}]",
    )  # fmt: skip
    found = records(cli(*words))

    assert [r["evaluation"]["split"] for r in found] == ["test", "val"]
    assert {r["data"]["n_train"] for r in found} == {18}


# ---------------------------------------------------------------- fast on and off


def test_fast_decides_neither_the_penalty_nor_the_logits(cli, records, tiny_clip, folder, tmp_path):
    both = []
    for fast in ("on", "off"):
        out = tmp_path / fast
        (record,) = records(
            cli(
                *run(
                    "linear_probe-quick",
                    tiny_clip,
                    folder,
                    out,
                    "data.shots=4",
                    "model.precision=fp32",
                    f"fast={fast}",
                )
            )
        )
        (history,) = out.rglob("history.jsonl")
        tried = {}
        for line in history.read_text().splitlines():
            entry = json.loads(line)
            tried[entry["C"]] = entry["val_loss"]
        both.append((record["selection"], record["metrics"], tried))

    (chosen, figures, tried), (chosen_off, figures_off, tried_off) = both
    assert chosen["by"] == chosen_off["by"]
    assert tried.keys() == tried_off.keys()
    assert max(tried) == 1e6  # separable, and hardly penalised
    np.testing.assert_allclose(list(tried.values()), list(tried_off.values()), rtol=1e-4)
    for name in ("accuracy", "nll", "ece", "nll_calibrated"):
        assert figures[name]["value"] == pytest.approx(figures_off[name]["value"], rel=1e-4)


# ---------------------------------------------------------------- temperatures


def test_a_temperature_at_its_bound_is_flagged_and_not_applied(
    cli, records, tiny_clip, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(calibration, "TEMPERATURES", (1e-4, 2e-4))

    for recipe in ("zero_shot", "linear_probe-quick"):
        done = cli(*run(recipe, tiny_clip, folder, tmp_path / recipe, "data.shots=2"))
        (record,) = records(done)
        assert "temperature_at_bound" in record["flags"]
        assert record["calibration"]["temperature"] is None
        assert "nll_calibrated" not in record["metrics"]
        assert "it is not applied" in done.err
    assert "temperature_at_bound" in FLAGS


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("recipe", "settings", "messages"),
    [
        ("full_finetune", [], ["10 training steps", "warmup_steps=500", "method.warmup_steps=0.1", "-fewshot"]),
        ("wise_ft", [], ["the 10 training steps", "method.warmup_steps=500"]),
        ("full_finetune-quick", ["method.warmup_steps=21"], ["the 20 training steps", "method.warmup_steps=21"]),
        ("lora", ["method.warmup_steps=1001"], ["the 1000 training steps", "method.warmup_steps=1001"]),
        ("coop-quick", ["method.warmup_epochs=41"], ["has 40 epochs", "but 41 warm-up epochs", "method.warmup_lr"]),
        ("tip_adapter_f-quick", ["method.warmup_steps=101"], ["the 100 training steps"]),
        ("clip_adapter-quick", ["method.warmup_epochs=101"], ["has 100 epochs"]),
        ("full_finetune", ["method.warmup_steps=2.5"], ["a whole number of steps, or a fraction"]),
    ],
)  # fmt: skip
def test_a_warm_up_longer_than_the_training_is_refused(
    cli, tiny_clip, folder, tmp_path, recipe, settings, messages
):
    done = cli(*run(recipe, tiny_clip, folder, tmp_path / "r", "data.shots=2", *settings))

    assert done.code == 2
    for message in messages:
        assert message in done.text
    assert not list((tmp_path / "r").rglob("record.json"))


def test_the_recipes_for_few_shots_reach_their_peak(cli, records, tiny_clip, folder, tmp_path):
    for recipe in ("full_finetune-fewshot", "wise_ft-fewshot"):
        words = run(
            recipe, tiny_clip, folder, tmp_path / recipe, "data.shots=4", "method.augment=none"
        )
        (record,) = records(cli(*words))
        (history,) = (tmp_path / recipe).rglob("history.jsonl")
        rates = [json.loads(x).get("learning_rate", 0) for x in history.read_text().splitlines()]
        assert max(rates) == pytest.approx(1e-5, rel=1e-2)
        assert record["status"] == "ok"


@pytest.mark.parametrize("recipe", ["full_finetune", "lora"])
def test_a_warm_up_longer_than_the_training_is_refused_for_texts(cli, tiny_texts, tmp_path, recipe):
    rows = [f"a {w} plot {i},{y}" for i in range(40) for y, w in ((0, "dull"), (1, "fine"))]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    words = run(
        recipe,
        tiny_texts["distilbert"],
        f"csv:{tmp_path / 't.csv'}",
        tmp_path / "r",
        "data.shots=4",
    )

    done = cli(*words, program="textsent")

    assert done.code == 2
    assert "the 3 training steps" in done.text
    assert "method.warmup_steps=500" in done.text
    assert "-fewshot" in done.text


# ---------------------------------------------------------------- steps that have to be confirmed


def test_lora_on_full_data_states_its_steps_and_asks(cli, records, tiny_clip, folder, tmp_path):
    done = cli(*run("lora", tiny_clip, folder, tmp_path / "r"))

    assert done.code == 2
    assert (
        "lora would train for 3,000 steps: 500 for each of the 6 examples of the largest class"
        in done.text
    )
    assert "--set method.steps=3000" in done.text
    assert "--set method.steps_per_shot=null" in done.text
    words = run("lora", tiny_clip, folder, tmp_path / "r", "method.steps=2", "method.augment=none")
    (record,) = records(cli(*words))
    assert record["status"] == "ok"
    (history,) = (tmp_path / "r").rglob("history.jsonl")
    assert json.loads(history.read_text().splitlines()[-1])["step"] == 2


# ---------------------------------------------------------------- limits against the model


def test_a_rank_beyond_the_layers_width_is_refused(cli, tiny_clip, tiny_texts, folder, tmp_path):
    done = cli(
        *run(
            "lora-quick",
            tiny_clip,
            folder,
            tmp_path / "r",
            "data.shots=2",
            "method.roles=[q]",
            "method.blocks=null",
            "method.r=5000",
        )
    )
    rows = [f"a {w} plot {i},{y}" for i in range(40) for y, w in ((0, "dull"), (1, "fine"))]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    words = run(
        "lora-fewshot",
        tiny_texts["distilbert"],
        f"csv:{tmp_path / 't.csv'}",
        tmp_path / "s",
        "method.r=5000",
    )
    text = cli(*words, program="textsent")

    for each in (done, text):
        assert each.code == 2
        assert "method.r is 5000, but the layer" in each.text
        assert "wide" in each.text
        assert "use 1 to" in each.text


def test_a_bottleneck_below_one_feature_is_refused(cli, tiny_clip, folder, tmp_path):
    done = cli(
        *run(
            "clip_adapter-quick",
            tiny_clip,
            folder,
            tmp_path / "r",
            "data.shots=2",
            "method.reduction=5000",
        )
    )

    assert done.code == 2
    assert "method.reduction is 5000; the features of" in done.text


@pytest.mark.parametrize(
    "setting",
    [
        "method.lr=.inf",
        "method.lr=.nan",
        "method.weight_decay=.inf",
        "resources.cpus=.inf",
        "method.epochs=9999999999",
    ],
)
def test_numbers_without_end_are_refused(cli, tiny_clip, folder, tmp_path, setting):
    done = cli(*run("coop-quick", tiny_clip, folder, tmp_path / "r", setting))

    assert done.code == 2
    assert setting.partition("=")[0] in done.text
