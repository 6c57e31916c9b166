"""From a sweep's YAML to its experiments: axes, parts, protocols, includes and excludes."""

from __future__ import annotations

import json

import pytest

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.experiments import shipped, sweep

BASE = {"datasets": ["synthetic:3x8"], "models": ["stitched"], "methods": ["linear_probe-quick"]}


@pytest.fixture
def load(tmp_path):
    """Build the experiments of a sweep given as plain data; returns name, data, model, shots, seeds of each."""

    def call(content, *settings, track="clip"):
        path = tmp_path / "mine.yaml"
        path.write_text(json.dumps(content))
        return sweep.load_sweep(str(path), settings, track=track)

    return call


def facts(experiments):
    return [
        (
            e.recipe,
            e.config.data.name,
            e.config.model.name if e.config.model else None,
            e.config.data.shots,
            e.config.seeds,
        )
        for e in experiments
    ]


def test_the_product_of_all_axes(load):
    found = load({
        **BASE,
        "datasets": ["synthetic", "synthetic:3x8"],
        "shots": [1, None],
        "seeds": [4, 5],
    })

    assert facts(found) == [
        ("linear_probe-quick", "synthetic", "stitched", 1, (4, 5)),
        ("linear_probe-quick", "synthetic", "stitched", None, (4, 5)),
        ("linear_probe-quick", "synthetic:3x8", "stitched", 1, (4, 5)),
        ("linear_probe-quick", "synthetic:3x8", "stitched", None, (4, 5)),
    ]


def test_one_sweep_may_have_images_and_texts(load):
    content = {
        "seeds": [1, 2],
        "parts": [
            {**BASE, "methods": ["clip/zero_shot"], "shots": [1]},
            {
                "datasets": ["rotten_tomatoes:offline"],
                "methods": ["text/tfidf_svm-quick"],
                "shots": [64],
                "seeds": [3],
            },
        ],
    }

    for track in ("clip", "text"):
        found = load(content, track=track)
        assert facts(found) == [
            ("zero_shot", "synthetic:3x8", "stitched", 1, (1, 2)),
            ("tfidf_svm-quick", "rotten_tomatoes:offline", None, 64, (3,)),
        ]
        assert [e.track for e in found] == ["clip", "text"]


def test_a_method_without_a_backbone_runs_once_for_all_models(load):
    found = load({
        "datasets": ["rotten_tomatoes:offline"],
        "models": ["minilm", "distilbert-base-uncased"],
        "methods": ["text/tfidf_svm-quick", "text/svm-quick"],
    })

    assert [(e.recipe, e.config.model and e.config.model.name) for e in found] == [
        ("tfidf_svm-quick", None), ("svm-quick", "minilm"), ("svm-quick", "distilbert-base-uncased"),
    ]  # fmt: skip


def test_a_method_may_set_its_own_shots_and_seeds(load):
    found = load({
        **BASE,
        "methods": [{"recipe": "zero_shot", "shots": [None], "seeds": [1]}, "linear_probe-quick"],
        "shots": [2, 4],
        "seeds": [1, 2, 3],
    })

    assert [(e.recipe, e.config.data.shots, e.config.seeds) for e in found] == [
        ("zero_shot", None, (1,)),
        ("linear_probe-quick", 2, (1, 2, 3)),
        ("linear_probe-quick", 4, (1, 2, 3)),
    ]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ({"datasets": "synthetic:*"}, [("synthetic", 1), ("synthetic", 2)]),
        ({"shots": 2}, [("synthetic", 1), ("synthetic:3x8", 1)]),
        ({"datasets": ["*3x8"], "shots": [1]}, [("synthetic", 1), ("synthetic", 2), ("synthetic:3x8", 2)]),
        ({"methods": "linear*", "models": "*", "datasets": "synthetic"}, [("synthetic:3x8", 1), ("synthetic:3x8", 2)]),
        ({"methods": "lora*"}, [("synthetic", 1), ("synthetic", 2), ("synthetic:3x8", 1), ("synthetic:3x8", 2)]),
    ],
)  # fmt: skip
def test_excludes(load, exclude, left):
    found = load({
        **BASE,
        "datasets": ["synthetic", "synthetic:3x8"],
        "shots": [1, 2],
        "exclude": [exclude],
    })

    assert [(e.config.data.name, e.config.data.shots) for e in found] == left


def test_an_exclude_of_seeds_removes_only_these_seeds(load):
    found = load({
        **BASE,
        "shots": [1, 2],
        "seeds": [1, 2, 3],
        "exclude": [{"shots": 2, "seeds": [1, 3]}],
    })

    assert [(e.config.data.shots, e.config.seeds) for e in found] == [(1, (1, 2, 3)), (2, (2,))]


def test_an_include_adds_runs_without_repeating_any(load):
    found = load({
        **BASE,
        "shots": [1, 2],
        "exclude": [{"shots": 2}],
        "include": [
            {"methods": ["zero_shot"], "shots": [None]},
            {"shots": [1]},
            {"datasets": ["synthetic"], "shots": [2]},
        ],
    })

    assert [(e.recipe, e.config.data.name, e.config.data.shots) for e in found] == [
        ("linear_probe-quick", "synthetic:3x8", 1),
        ("zero_shot", "synthetic:3x8", None),
        ("linear_probe-quick", "synthetic", 2),
    ]


def test_eval_on_for_all_or_by_dataset(load):
    (every,) = load({
        **BASE,
        "eval_on": ["synthetic", {"dataset": "synthetic:4x4", "split": "val"}],
    })
    assert [(t.dataset, t.split) for t in every.config.evaluation.also] == [
        ("synthetic", "test"), ("synthetic:4x4", "val"),
    ]  # fmt: skip

    (own,) = load({
        **BASE,
        "datasets": ["folder:data/photo"],
        "eval_on": {"folder:*/photo": ["folder:*/sketch"]},
        "settings": {"evaluation.also": [{"split": "val"}]},
    })
    assert [(t.dataset, t.split) for t in own.config.evaluation.also] == [
        (None, "val"), ("folder:data/sketch", "test"),
    ]  # fmt: skip

    with pytest.raises(ConfigError, match="has no evaluation targets for a fit on 'synthetic:3x8'"):
        load({**BASE, "eval_on": {"folder:*": ["synthetic"]}})


def test_an_axis_of_the_command_line_replaces_it_in_every_part(load):
    content = {"parts": [{**BASE, "seeds": [1]}, {**BASE, "shots": [2], "seeds": [9]}]}

    found = load(content, "seeds=[5,6]", "method.max_iter=7")

    assert {e.config.seeds for e in found} == {(5, 6)}
    assert {e.method.max_iter for e in found} == {7}


# ---------------------------------------------------------------- protocols


def test_few_shot_protocol(load):
    found = load({**BASE, "protocol": "few_shot"})

    assert [e.config.data.shots for e in found] == [1, 2, 4, 8, 16]
    assert {e.config.seeds for e in found} == {(1, 2, 3)}
    assert {e.config.evaluation.protocol for e in found} == {"few_shot"}
    assert {e.config.evaluation.split for e in found} == {"test"}


def test_base_to_new_protocol(load):
    (found,) = load({
        **BASE,
        "protocol": "base_to_new",
        "settings": {"evaluation.also": [{"split": "val"}]},
    })

    assert found.config.data.classes == "base"
    assert found.config.data.shots == 16
    assert [(t.dataset, t.split, t.classes) for t in found.config.evaluation.also] == [
        (None, "test", "new"), (None, "val", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "targets"),
    [
        (
            "imagenet:D/imagenet",
            [
                "imagenet-v2:D/imagenetv2",
                "imagenet-sketch:D/imagenet-sketch",
                "imagenet-a:D/imagenet-adversarial",
                "imagenet-r:D/imagenet-rendition",
            ],
        ),
        ("imagenette:DIR", ["imagenette-sketch"]),
        ("openmoji:color", ["openmoji:line"]),
        ("folder:pacs/photo", ["folder:pacs/sketch"]),
    ],
)
def test_domain_shift_protocol(load, dataset, targets):
    (found,) = load({**BASE, "datasets": [dataset], "protocol": "domain_shift"})

    assert [t.dataset for t in found.config.evaluation.also] == targets


def test_a_sweep_may_take_part_of_a_protocol(load):
    found = load({**BASE, "protocol": "few_shot", "shots": [4], "seeds": [1]})

    assert [(e.config.data.shots, e.config.seeds) for e in found] == [(4, (1,))]


@pytest.mark.parametrize("name", sorted(shipped.protocol_names()))
def test_every_shipped_protocol_is_valid_and_has_a_source(name):
    _, rules = sweep.load_protocol(name)

    assert len(rules.about) > 40
    assert "arXiv:" in rules.source or "NAACL" in rules.source


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**BASE, "sead": [1]}, "did you mean 'seeds'"),
        ({**BASE, "shots": []}, "shots: Tuple should have at least 1 item"),
        ({**BASE, "shots": [0]}, "Input should be greater than 0"),
        ({**BASE, "methods": [{"recipe": "zero_shot", "sett": {}}]}, "did you mean 'set'"),
        ({**BASE, "exclude": [{"dataset": "x"}]}, "did you mean 'datasets'"),
        ({**BASE, "exclude": [{"datasets": "*"}]}, "has no runs"),
        ({**BASE, "protocol": "few_shots"}, "did you mean 'few_shot'"),
        ({"parts": [{"methods": ["zero_shot"]}]}, "has no datasets"),
        ({"parts": [{"datasets": ["synthetic"]}, BASE]}, "has no methods"),
        ({**BASE, "parts": [{"modles": ["x"]}]}, "did you mean 'models'"),
        ({**BASE, "settings": {"data": 1, "data.shots": 2}}, "already has the value"),
        ({**BASE, "settings": {"data.shot": 2}}, "did you mean 'shots'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(load, content, message):
    with pytest.raises(ConfigError, match=message):
        load(content)
