"""The published numbers: names, conventions and arithmetic; what a table shows beside a run and what it refuses."""

from __future__ import annotations

import re

import pytest

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.registry import METHODS
from clipadapt.core.report.references import all_references, differences, parse, published_for
from clipadapt.core.report.tables import build_table, render
from clipadapt.core.scoring.combined import harmonic
from clipadapt.datasets._coop import SETS
from clipadapt.datasets._imagenet import TEMPLATES_7
from tests.unit.core.records.test_records import make_record, metric

B16, RN50 = "ViT-B-16-quickgelu/openai", "RN50-quickgelu/openai"
IMAGENETS = {"imagenet", "imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r"}
COOP = {f"{name}:coop" for name in SETS}
OF_CLIP = [r for r in all_references() if r.method.startswith("clip/")]
BASE_TO_NEW = [r for r in OF_CLIP if r.base_to_new]
NOT_CHECKED = {  # one of base, new and H is not published
    ("clip/maple", "caltech101:coop"), ("clip/maple", "dtd:coop"),
    ("clip/promptsrc", "eurosat:coop"), ("clip/promptsrc", "dtd:coop"), ("clip/coop", "imagenet"),
    *(("clip/gda", name) for name in COOP | {"imagenet"}),
}  # fmt: skip


# ---------------------------------------------------------------- the file


def test_every_name_is_known() -> None:
    known = METHODS.names()
    for reference in OF_CLIP:
        assert reference.method in known
        names = set(reference.over or (reference.dataset,)) | {reference.trained_on or "imagenet"}
        assert names <= IMAGENETS | COOP, reference
        assert all(re.fullmatch(r"[\w.-]+/\w+", model) for model in reference.models)
        assert reference.shots in {None, 1, 2, 4, 8, 16}
        uses_train = getattr(METHODS.get(reference.method), "uses_train", True)
        assert (reference.shots is not None) == uses_train, reference


def test_every_setting_is_one_of_its_method() -> None:
    for reference in OF_CLIP:
        fields = METHODS.get(reference.method).Config.model_fields
        for key in reference.where:
            assert key.partition(".")[2] in fields, (reference.method, key)


def test_a_repository_is_cited_with_its_commit_or_issue() -> None:
    cited = {r.source for r in OF_CLIP if "repository" in r.source}
    without = {s for s in cited if not re.search(r"commit [0-9a-f]{7}|issue \d+|\.png", s)}
    assert without == set()


def test_sizes_and_templates_are_those_of_the_datasets() -> None:
    for reference in OF_CLIP:
        coop_set = SETS.get(reference.dataset.partition(":")[0])
        if coop_set is None or reference.over:
            continue
        assert (reference.n_test, reference.n_classes) == (coop_set.sizes[2], coop_set.n_classes)
        assert reference.prompts in {None, TEMPLATES_7, (coop_set.facts.template,)}


def test_h_follows_its_convention() -> None:
    checked = 0
    for reference in BASE_TO_NEW:
        values = reference.base_to_new
        if len(values) < 3:
            assert (reference.method, reference.dataset) in NOT_CHECKED
            continue
        assert reference.h == ("of_means" if reference.over else "dataset")
        assert values["H"] == pytest.approx(harmonic(values["base"], values["new"]), abs=1e-4)
        checked += 1
    assert checked == len(BASE_TO_NEW) - len(NOT_CHECKED) >= 10


def test_rn50_has_every_number_of_shots_on_every_dataset() -> None:
    for method in ("clip/tip_adapter", "clip/tip_adapter_f", "clip/clip_adapter", "clip/gda"):
        found = {(r.dataset, r.shots) for r in OF_CLIP if r.method == method and RN50 in r.models}
        assert found >= {(d, n) for d in COOP | {"imagenet"} for n in (1, 2, 4, 8, 16)}


def test_what_was_selected_on_test_is_cited() -> None:
    sources = {r.cited for r in OF_CLIP if r.method == "clip/tip_adapter_f" and r.shots == 16}
    assert any(s.endswith("; epoch selected on test)") for s in sources)
    assert any("epoch, and alpha and beta selected on test" in s for s in sources)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ({"base": 0.8, "new": 0.7}, "belong to the protocol base_to_new"),
        ({"base": 0.8, "new": 0.7, "H": 0.75, "protocol": "base_to_new"}, "H needs its convention"),
        ({"H": 0.75, "protocol": "base_to_new", "h": "of_means"}, "h is 'dataset' for one dataset"),
        ({"base": 80, "protocol": "base_to_new"}, "less than or equal to 1"),
        ({"test": {"accuracy": 0.5}, "trained_on": "imagenet"}, "trained_on belongs to"),
        ({"test": {"accuracy": 0.5}, "templates": "coop"}, "there is no template set 'coop'"),
    ],
)
def test_a_number_without_its_convention_is_refused(number: dict[str, object], words: str) -> None:
    group = {"source": "s", "dataset": "d", "models": ["m"], "method": "a", "numbers": [number]}
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse([group], "x.yaml")


def test_short_forms_stand_for_several_numbers() -> None:
    group = {"source": "s", "models": ["m"], "method": "a", "templates": "own"}
    numbers = [
        {"dataset": "d", "by_shots": {1: 0.5, 2: 0.6}},
        {"by_dataset": {"d": 0.7, "e": 0.8}, "shots": 4},
    ]
    templates = {"own": {"d": ["d {}"], "e": ["e {}"]}}
    found = parse([{**group, "numbers": numbers}], "x.yaml", {"e": {"n_test": 9}}, templates)
    assert [(r.dataset, r.shots, r.test["accuracy"], r.n_test, r.prompts) for r in found] == [
        ("d", 1, 0.5, None, ("d {}",)), ("d", 2, 0.6, None, ("d {}",)),
        ("d", 4, 0.7, None, ("d {}",)), ("e", 4, 0.8, 9, ("e {}",)),
    ]  # fmt: skip


# ---------------------------------------------------------------- in the table


def few_shot(method, dataset, template, *, settings=None, shots=16, model=RN50, **changes):
    coop_set = SETS[dataset.partition(":")[0]]
    fields = {
        "run_id": f"{method}{dataset}{changes}", "fit_id": f"{method}{dataset}",
        "method__name": method, "method__recipe": None, "data__name": dataset, "data__shots": shots,
        "data__n_test": coop_set.sizes[2], "data__n_classes": coop_set.n_classes, "model__name": model,
        "evaluation__dataset": dataset, "evaluation__templates": [template],
        "config": {"data": {"name": dataset}, "method": {"name": method, **(settings or {})}},
        "metrics": {"accuracy": metric(0.6)},
    }  # fmt: skip
    return make_record(**{**fields, **changes})


TIP = {"views": 10, "search": True}


def published(table):
    return [[cell.value for cell in line.published] for line in table.lines]


def near(table):
    return [note for note in table.notes if note.startswith("Not comparable")]


def test_a_number_of_the_same_conventions_is_beside_the_row() -> None:
    record = few_shot("clip/tip_adapter", "dtd:coop", "{} texture.", settings=TIP)
    table = build_table([record], reference=True)
    assert published(table) == [[0.6093]]
    assert near(table) == []
    source = table.notes[-1]
    assert source.startswith("Published (1): Tip-Adapter repository, exp.log, commit 30d2598")
    assert sum("seeds and few-shot draws" in note for note in table.notes) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation__dataset": "dtd", "data__name": "dtd"}, "data dtd, published on dtd:coop"),
        ({"model__name": B16}, f"model {B16}, published with {RN50}"),
        ({"evaluation__templates": ["a photo of a {}."]}, "template 'a photo of a {}.', published with '{} texture.'"),
        ({"evaluation__templates": list(TEMPLATES_7)}, "7 templates, published with 1"),
        ({"config": {"method": {"views": 1, "search": True}}}, "method.views=1, published with 10"),
        ({"evaluation__classes": "new"}, "evaluated on the new classes, published on all"),
        ({"data__n_test": 100}, "evaluated on 100 examples, published on 1,692"),
        ({"flags": ("not_the_official_split",)}, "not the official split"),
        ({"model__dtype": "bf16"}, "computed in bf16, published in fp16"),
    ],
)  # fmt: skip
def test_the_table_says_which_convention_differs(changes: dict[str, object], words: str) -> None:
    record = few_shot("clip/tip_adapter", "dtd:coop", "{} texture.", settings=TIP, **changes)
    table = build_table([record], reference=True)
    assert published(table) == [[]]
    (note,) = near(table)
    assert note.startswith("Not comparable with clip/tip_adapter: published dtd")
    assert f" 60.9. What differs: {words}. Source: Tip-Adapter repository, exp.log" in note


def test_pets_of_torchvision_are_another_split() -> None:
    record = few_shot(
        "clip/tip_adapter", "oxford_pets:coop", SETS["oxford_pets"].facts.template, settings=TIP,
        data__name="oxford_iiit_pet", evaluation__dataset="oxford_iiit_pet",
    )  # fmt: skip
    (nearest,) = published_for([record])
    assert nearest.differences == ("data oxford_iiit_pet, published on oxford_pets:coop",)


def test_one_note_lists_the_datasets_that_differ_in_the_same_way() -> None:
    records = [
        few_shot("clip/tip_adapter", f"{name}:coop", SETS[name].facts.template, settings=TIP, model=B16)
        for name in ("caltech101", "dtd", "eurosat")
    ]  # fmt: skip
    (note,) = near(build_table(records, reference=True))
    assert "published caltech101:coop 90.2; dtd:coop 60.9; eurosat:coop 70.5. What differs" in note


def base_and_new(method, dataset, settings, **changes):
    config = {"data": {"name": dataset, "classes": "base"}, "method": settings}
    template = SETS[dataset.partition(":")[0]].facts.template
    n = changes.pop("n_classes", SETS[dataset.partition(":")[0]].n_classes)
    return [
        few_shot(
            method, dataset, template, model=B16, config=config, run_id=classes, fit_id="f", data__n_classes=half,
            evaluation__classes=classes, evaluation__protocol="base_to_new", **changes,
        )
        for classes, half in (("base", n - n // 2), ("new", n // 2))
    ]  # fmt: skip


MAPLE = {"n_ctx": 2, "depth": 9}


def test_base_new_and_h_have_their_own_numbers() -> None:
    table = build_table(base_and_new("clip/maple", "eurosat:coop", MAPLE), reference=True)
    shown = {line.classes: [c.value for c in line.published] for line in table.lines}
    assert shown == {"base": [0.9407], "new": [0.7323], "H": [0.8235]}
    assert near(table) == []
    text = render(table)
    assert all(f"{value} (1)" in text for value in (94.1, 73.2, 82.3))


def test_h_alone_is_beside_h_alone() -> None:
    table = build_table(base_and_new("clip/maple", "dtd:coop", MAPLE), reference=True)
    shown = {line.classes: [c.value for c in line.published] for line in table.lines}
    assert shown == {"base": [], "new": [], "H": [0.6816]}


def test_base_and_new_without_a_published_h() -> None:
    settings = {"views": 10, "estimator": "per_class"}
    table = build_table(base_and_new("clip/gda", "dtd:coop", settings), reference=True)
    shown = {line.classes: [c.value for c in line.published] for line in table.lines}
    assert shown == {"base": [0.8063], "new": [0.5982], "H": []}
    assert near(table) == []


def test_other_classes_of_the_dataset_are_another_task() -> None:
    records = base_and_new("clip/maple", "eurosat:coop", MAPLE, n_classes=8)
    table = build_table(records, reference=True)
    assert published(table) == [[], [], []]
    assert any("evaluated on 4 classes, published on 5" in note for note in near(table))


def test_all_classes_are_another_protocol_than_base_and_new() -> None:
    record = few_shot("clip/maple", "dtd:coop", "{} texture.", settings=MAPLE, model=B16)
    (note,) = near(build_table([record], reference=True))
    assert (
        "published dtd:coop H 68.2. What differs: evaluated on all classes, published on base"
        in note
    )

    base, _ = base_and_new("clip/maple", "eurosat:coop", MAPLE)
    everything = base.model_copy(update={"config": {"data": {}, "method": MAPLE}})
    (nearest, *_) = published_for([everything])
    assert "trained on the all classes, published on the base classes" not in nearest.differences
    assert "trained on all classes, published on the base classes" in nearest.differences


def test_a_mean_over_datasets_is_never_beside_one_dataset() -> None:
    table = build_table(base_and_new("clip/kgcoop", "ucf101:coop", {}), reference=True)
    assert published(table) == [[], [], []]
    (note,) = near(table)
    assert (
        "published ucf101:coop base 80.7, new 73.6, H 77.0. What differs: one dataset, published as the mean over 11"
        in note
    )

    maple = base_and_new("clip/maple", "sun397:coop", MAPLE)[0]
    (nearest,) = published_for([maple])
    assert differences(maple, nearest.reference) == ("one dataset, published as the mean over 11",)


def test_a_mean_across_datasets_needs_the_same_training_data() -> None:
    record = few_shot(
        "clip/cocoop", "dtd:coop", "{} texture.", model=B16, data__name="imagenet"
    )  # fmt: skip
    (nearest,) = published_for([record])
    assert nearest.reference.protocol == "cross_dataset"
    assert nearest.differences == ("one dataset, published as the mean over 10",)


def test_a_source_that_does_not_state_its_templates_is_not_comparable() -> None:
    record = make_record(
        method__name="clip/taskres", data__name="imagenet", data__shots=16, data__n_test=50_000, data__n_classes=1000,
        evaluation__dataset="imagenet", model__name=B16,
    )  # fmt: skip
    (note,) = near(build_table([record], reference=True))
    assert "its templates are not published" in note
