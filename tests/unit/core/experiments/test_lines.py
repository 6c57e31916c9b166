"""Lines of a recipe by shots and dataset: which apply, which faults are reported, what the shipped recipes set."""

from __future__ import annotations

import json

import pytest

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.registry import dataset_key
from clipadapt.core.experiments import config, run_id, shipped, sweep
from clipadapt.core.files import safe_yaml

RECIPE = """
method: {name: clip/coop, epochs: 9}
by_shots:
  1: {method: {epochs: 10}}
  4: {method: {epochs: 40, lr: 0.4}}
by_dataset:
  imagenet: {method: {epochs: 50}, data: {templates: "7"}}
  oxford_pets:
    method: {n_ctx: 4}
    by_shots: {2: {method: {epochs: 22}}}
"""


def build(data, *more, recipe=RECIPE):
    fragments = [("paper", safe_yaml.parse(recipe)), ("--set", {"data": data}), *more]
    return config.build(fragments, source="test")


@pytest.mark.parametrize(
    ("data", "epochs", "origin"),
    [
        ({"name": "dtd", "shots": 1}, 10, "paper, by_shots 1"),
        ({"name": "dtd", "shots": 3}, 10, "paper, by_shots 1"),
        ({"name": "dtd", "shots": 4}, 40, "paper, by_shots 4"),
        ({"name": "dtd", "shots": "16"}, 40, "paper, by_shots 4"),
        ({"name": "dtd"}, 9, "paper"),  # full data
        ({"name": "imagenet:/data", "shots": 1}, 50, "paper, by_dataset imagenet"),
        ({"name": "imagenet-v2:/data", "shots": 1}, 10, "paper, by_shots 1"),
        ({"name": "oxford_pets", "shots": 1}, 10, "paper, by_shots 1"),
        ({"name": "oxford_pets", "shots": 4}, 22, "paper, by_dataset oxford_pets, by_shots 2"),
        ({"name": "oxford-iiit-pet:/d", "shots": 2}, 22, "paper, by_dataset oxford_pets, by_shots 2"),
        ({"name": "oxford_pets"}, 9, "paper"),
    ],
)  # fmt: skip
def test_the_strongest_line_applies_and_is_the_origin(data, epochs, origin):
    got = build(data)

    assert (got.method.epochs, got.origins["method.epochs"]) == (epochs, origin)
    assert got.deviations == ()
    assert "by_shots" not in got.resolved()
    assert got.recipe == "paper"


def test_a_line_is_named_by_its_dataset_however_the_key_is_spelled():
    recipe = "method: {name: clip/coop}\nby_dataset: {oxford.pets: {method: {epochs: 5}}}"

    got = build({"name": "oxford_pets", "shots": 1}, recipe=recipe)

    assert got.method.epochs == 5
    assert got.origins["method.epochs"] == "paper, by_dataset oxford_pets"


def test_only_the_line_of_the_most_shots_applies():
    assert build({"name": "dtd", "shots": 2}).method.lr == 0.002
    assert build({"name": "dtd", "shots": 4}).method.lr == 0.4
    assert build({"name": "oxford_pets", "shots": 4}).method.n_ctx == 4
    assert build({"name": "imagenet:/d"}).config.data.templates == "7"
    assert build({"name": "imagenet:/d", "shots": 4}).lines == ("by_dataset imagenet", "by_shots 4")


def test_settings_of_the_user_win_over_every_line():
    got = build(
        {"name": "imagenet:/d", "shots": 4, "templates": "80"},
        ("mine", {"method": {"epochs": 3}, "by_shots": {"2": {"method": {"lr": 0.3}}}}),
    )

    assert (got.method.epochs, got.method.lr, got.config.data.templates) == (3, 0.3, "80")
    assert got.origins["method.lr"] == "mine, by_shots 2"
    assert set(got.deviations) == {
        "method.epochs=3 (mine)", "method.lr=0.3 (mine)", "data.templates=80 (--set)",
    }  # fmt: skip


def test_a_draw_from_a_file_counts_by_its_shots(tmp_path):
    known, unknown = tmp_path / "known.json", tmp_path / "unknown.json"
    known.write_text(json.dumps({"shots": 4}))
    unknown.write_text("[]")

    assert build({"name": "dtd", "manifest": str(known)}).method.epochs == 40
    assert build({"name": "dtd", "manifest": str(known), "shots": 1}).method.epochs == 40
    assert build({"name": "dtd", "manifest": str(unknown)}).method.epochs == 9
    assert build({"name": "dtd", "manifest": str(tmp_path / "none.json")}).method.epochs == 9


def test_a_draw_per_seed_counts_by_the_shots_of_the_first(tmp_path):
    (tmp_path / "1.json").write_text(json.dumps({"shots": 4}))
    (tmp_path / "2.json").write_text(json.dumps({"shots": 1}))
    data = {"name": "dtd", "manifest": str(tmp_path / "{seed}.json")}

    assert build(data).method.epochs == 40
    assert build(data, ("seeds", {"seeds": [2, 1]})).method.epochs == 10


def test_ids_depend_on_values_and_not_on_lines():
    by_line = build({"name": "dtd", "shots": 1})
    plain = build({"name": "dtd", "shots": 1}, recipe="method: {name: clip/coop, epochs: 10}")

    facts = (
        "model",
        "seed",
        "threads",
        "data.sha256",
        "data.shots",
        "data.manifest",
        "data.classnames",
    )
    facts = dict.fromkeys((*facts, "data.templates", "data.classes", "data.held_out"), "a")  # fmt: skip
    assert run_id.fit_part(by_line, 1, facts) == run_id.fit_part(plain, 1, facts)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "by_shots: {1: {method: {epoch: 1}}}",
            "by_shots.1.method.epoch: Extra inputs are not permitted (got 1); did you mean 'epochs'?",
        ),
        ("by_shots: {64: {method: {epochs: -1}}}", "by_shots.64.method.epochs: Input should be"),
        (
            "by_shots: {64: {stor: on}}",
            "by_shots.64.stor: Extra inputs are not permitted (got 'on'); did you mean 'store'?",
        ),
        (
            "by_shots: {many: {}}",
            "by_shots.many: a line of by_shots needs a positive number of shots",
        ),
        ("by_shots: {0: {}}", "by_shots.0: a line of by_shots needs a positive number of shots"),
        (
            "by_shots: [1]",
            "by_shots: it maps numbers of shots to settings, for example {1: {method: {epochs: 50}}} (got [1])",
        ),
        (
            "by_shots: {1: {}, ' 1': {}}",
            "by_shots. 1: there are two lines for 1 shots; write one of them",
        ),
        ("by_shots: {1: 50}", "by_shots.1: it maps keys to values (got 50)"),
        ("by_shots: {1: {data: {shots: 2}}}", "by_shots.1.data.shots: a line must not set it"),
        (
            "by_shots: {1: {by_dataset: {}}}",
            "by_shots.1.by_dataset: by_dataset belongs in the top level of the file",
        ),
        (
            "by_dataset: {dtd: {method: {name: svm}}}",
            "by_dataset.dtd.method.name: a line must not set it",
        ),
        (
            "by_dataset: {dtd: {by_shots: {4: {method: {lr: 0}}}}}",
            "by_dataset.dtd.by_shots.4.method.lr: Input should be greater than 0 (got 0)",
        ),
        ("by_dataset: {'dtd:/x': {}}", "by_dataset.dtd:/x: write the name before ':', 'dtd'"),
        (
            "by_dataset: {oxford_pets: {}, oxford-iiit-pet: {}}",
            "by_dataset.oxford-iiit-pet: it is the same dataset as 'oxford_pets'",
        ),
        (
            "by_dataset: {eurosta: {}}",
            "by_dataset.eurosta: unknown dataset; did you mean 'eurosat'? accepted: caltech101, ",
        ),
        ("by_dataset: {coop: {}}", "by_dataset.coop: unknown dataset; accepted: caltech101, "),
        ("by_dataset: dtd", "by_dataset: it maps names of datasets to settings"),
    ],
)
def test_every_line_is_checked_whether_it_applies_or_not(lines, message):
    with pytest.raises(ConfigError) as caught:
        build({"name": "sun397"}, recipe=f"method: {{name: clip/coop}}\n{lines}")
    assert message in str(caught.value)


def test_every_fault_of_every_line_is_reported_at_once():
    recipe = (
        "method: {name: clip/coop, m: 1}\nby_shots: {x: {}, 1: {method: {lr: 0}}, 2: {seed: [1]}}"
    )
    with pytest.raises(ConfigError) as caught:
        build({"name": "dtd", "shots": -1}, recipe=recipe)

    found = str(caught.value)
    for key in ("by_shots.x:", "by_shots.1.method.lr:", "by_shots.2.seed:", "method.m:", "data.shots:"):  # fmt: skip
        assert found.count(f"  {key}") == 1


# ---------------------------------------------------------------- shipped recipes

DATASETS = {
    "imagenet", "imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r", "caltech101", "oxford_pets",
    "stanford_cars", "flowers102", "food101", "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101",
}  # fmt: skip


def shipped_of(recipe, dataset, shots=16):
    words = [f"data.name={dataset}", f"data.shots={shots}", "model.name=any"]
    return config.load([recipe], words)


@pytest.mark.parametrize("recipe", sorted(shipped.config_names("clip")))
def test_shipped_lines_are_of_known_datasets(recipe):
    raw = shipped.read_fragment(shipped.config_names("clip")[recipe])

    assert {dataset_key(name, "clip") for name in raw.get("by_dataset", ())} <= DATASETS


@pytest.mark.parametrize("recipe", ["coop", "coop-ctxv1", "clip_adapter"])
def test_epochs_of_coop(recipe):
    epochs = {
        (name, shots): shipped_of(recipe, name, shots).method.epochs
        for name in ("dtd", "imagenet:/data")
        for shots in (1, 2, 4, 8, 16)
    }

    assert [epochs["dtd", shots] for shots in (1, 2, 4, 8, 16)] == [50, 100, 100, 200, 200]
    assert {epochs["imagenet:/data", shots] for shots in (1, 2, 4, 8, 16)} == {50}


@pytest.mark.parametrize(
    ("dataset", "values"),
    [
        ("imagenet:/d", (1.17, 3, 7, 20, "7")),
        ("oxford_iiit_pet", (1.17, 3, 7, 20, "single")),
        ("eurosat", (2, 10, 12, 100, "single")),
        ("fgvc_aircraft", (5, 30, 30, 20, "single")),
        ("flowers102", (10, 50, 50, 20, "single")),
        ("folder:/mine", (1.17, 3, 7, 20, "single")),
    ],
)
@pytest.mark.parametrize("recipe", ["tip_adapter", "tip_adapter_f"])
def test_values_of_tip_adapter(recipe, dataset, values):
    got = shipped_of(recipe, dataset)
    own = (got.method.alpha, got.method.alpha_max, got.method.beta_max)

    assert own == values[:3]
    assert getattr(got.method, "epochs", values[3]) == values[3]
    assert got.config.data.templates == values[4]
    assert got.deviations == got.config.recipe.deviations


@pytest.mark.parametrize(
    ("recipe", "templates"),
    [("lora", "a photo of a {}."), ("wise_ft", "80"), ("full_finetune", "80"), ("coop", "single")],
)
def test_templates_of_a_method(recipe, templates):
    for dataset in ("imagenet:/d", "dtd"):
        assert shipped_of(recipe, dataset).config.data.templates == templates


@pytest.mark.parametrize("recipe", ["gda", "gda-base_to_new", "proker"])
def test_crops_and_templates_of_imagenet(recipe):
    got = [shipped_of(recipe, name) for name in ("imagenet:/d", "dtd")]

    assert [(e.method.smallest_crop, e.config.data.templates) for e in got] == [
        (0.08, "7"),
        (0.5, "single"),
    ]


# ---------------------------------------------------------------- sweeps and protocols


def experiments(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(content))
    return sweep.load_sweep(str(path))


def test_a_sweep_of_paper_recipes_is_the_papers_table(tmp_path):
    found = experiments(tmp_path, {
        "protocol": "few_shot", "datasets": ["dtd", "imagenet:/data/imagenet"], "models": ["stitched"],
        "methods": ["coop", {"recipe": "tip_adapter", "shots": [16], "set": {"method.alpha": 9}}],
    })  # fmt: skip

    coop = [e for e in found if e.recipe == "coop"]
    assert [(e.config.data.name[:3], e.config.data.shots, e.method.epochs) for e in coop] == [
        (name, shots, epochs)
        for name, row in (("dtd", (50, 100, 100, 200, 200)), ("ima", (50,) * 5))
        for shots, epochs in zip((1, 2, 4, 8, 16), row, strict=True)
    ]
    tip = [e for e in found if e.recipe == "tip_adapter"]
    assert [(e.method.alpha, e.method.alpha_max) for e in tip] == [(9, 13), (9, 3)]
    assert tip[0].deviations[-1] == "method.alpha=9.0 (mine)"
    assert not any(d.startswith("method.") for d in coop[0].deviations)


@pytest.mark.parametrize("protocol", ["base_to_new", "cross_dataset"])
@pytest.mark.parametrize("name", ["coop", "clip/coop"])
def test_a_protocol_names_the_recipe_of_its_paper(tmp_path, protocol, name):
    content = {
        "protocol": protocol, "datasets": ["imagenet:/d"], "models": ["stitched"],
        "methods": [name, "coop-quick"], "exclude": [{"methods": "coop-quick"}],
    }  # fmt: skip
    (got,) = experiments(tmp_path, content)
    (other, _) = experiments(tmp_path, {**content, "protocol": "few_shot", "shots": [16], "exclude": []})  # fmt: skip

    assert (got.recipe, got.method.n_ctx, got.method.ctx_init) == ("coop-ctxv1", 4, "a photo of a")
    assert got.method.epochs == 50
    assert got.deviations == got.config.recipe.deviations
    assert (other.recipe, other.method.n_ctx, other.method.ctx_init) == ("coop", 16, None)


@pytest.mark.parametrize("protocol", sorted(shipped.protocol_names()))
def test_the_recipes_that_protocols_name_exist(protocol):
    _, rules = sweep.load_protocol(protocol)

    for name, other in rules.recipes.items():
        assert shipped.find_config(name).parent == shipped.find_config(other).parent
