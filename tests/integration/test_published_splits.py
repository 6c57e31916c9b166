"""Published splits and few-shot draws, as papers distribute them, from the command line to the table."""

from __future__ import annotations

import json
import pickle

import pytest

from tests.unit.datasets import coop_layout


def run(recipe, model, data, out, *settings):
    given = [f"model.name={model}", f"data.name={data}", *settings]
    return ["run", recipe, *(w for s in given for w in ("--set", s)), "--out", out, "--json"]


@pytest.fixture
def data(tmp_path):
    """CoOp's data folder with DTD, and index files of one and two shots for the seeds 1 and 2."""
    folder = tmp_path / "DATA"
    split = coop_layout.make(folder, "dtd")
    for shots in (1, 2):
        for seed in (1, 2):
            chosen = {}
            for role, n in (("train", shots), ("val", 1)):
                rows = [r for c in (0, 1) for r in [r for r in split[role] if r[1] == c][seed : seed + n]]  # fmt: skip
                chosen[role] = {
                    "data": [
                        {"impath": f"./data/dtd/images/{p}", "label": c, "classname": n}
                        for p, c, n in rows
                    ]
                }
            path = tmp_path / "indices" / f"shot_{shots}-seed_{seed}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(chosen))
    return folder


def test_a_published_draw_is_one_row_of_the_table(cli, records, tiny_clip, data, tmp_path):
    index = tmp_path / "indices" / "shot_2-seed_{seed}.json"
    out = tmp_path / "runs"
    settings = ["seeds=[1,2]", f"data.manifest={index}", "data.shots=2"]
    words = run("linear_probe-quick", tiny_clip, f"coop:dtd:{data}", out, *settings)
    found = records(cli(*words))

    for record in found:
        given = json.loads(
            (tmp_path / "indices" / f"shot_2-seed_{record['seed']}.json").read_text()
        )
        (manifest,) = [
            json.loads(p.read_text()) for p in out.rglob("manifest.json") if record["run_id"] in str(p)
        ]  # fmt: skip
        for role in ("train", "val"):
            paths = [e["impath"].removeprefix("./data/dtd/images/") for e in given[role]["data"]]
            assert manifest[role] == paths
        assert record["data"]["shots"] == 2
        assert record["data"]["name"] == "dtd:coop"
        assert (record["data"]["n_train"], record["data"]["n_val"]) == (4, 2)
        assert record["flags"].count("not_the_official_split") == 1
    table = cli("table", out, "--format", "csv").out
    assert table.count("dtd:coop") == 1
    own = run("linear_probe-quick", tiny_clip, f"coop:dtd:{data}", out, "seeds=[1,2]", "data.shots=2")  # fmt: skip
    assert len(records(cli(*own))) == 2
    table = cli("table", out, "--format", "csv").out
    assert table.count("dtd:coop") == 2  # the seed's own draw is another row


def test_torchvisions_split_and_coops_are_two_rows(cli, records, tiny_clip, data, tmp_path):
    labels = data / "dtd" / "dtd" / "labels"
    labels.mkdir(parents=True)
    for i, split in enumerate(("train", "val", "test")):
        for c, name in enumerate(("banded", "polka-dotted")):
            image = labels.parent / "images" / name / f"{name}_{i}.jpg"
            coop_layout.write_image(image, c, i)
            with (labels / f"{split}1.txt").open("a") as file:
                file.write(f"{name}/{name}_{i}.jpg\n")
    out = tmp_path / "runs"

    found = records(
        cli("zeroshot", "--model", tiny_clip, "--dataset", f"dtd:{data}", "--dataset", f"coop:dtd:{data}",
            "--out", out, "--json")
    )  # fmt: skip

    assert sorted(r["evaluation"]["dataset"] for r in found) == ["dtd", "dtd:coop"]
    table = cli("table", out).out
    assert "dtd:coop" in table
    assert sum(line.startswith(("| dtd ", "| dtd:coop ")) for line in table.splitlines()) == 2


def refused(result):
    assert result.code == 2, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    assert result.err.count("error:") == 1
    return result.text


def test_wrong_files_are_one_clear_message(cli, tiny_clip, data, tmp_path):
    coop_layout.make(data, "ucf101")
    index = tmp_path / "indices" / "shot_1-seed_1.json"
    pickled = tmp_path / "shot_1-seed_1.pkl"
    pickled.write_bytes(pickle.dumps({"train": [], "val": []}))
    out = tmp_path / "runs"

    def refusal(dataset, *settings):
        words = run("linear_probe-quick", tiny_clip, dataset, out, "seeds=[1]", *settings)
        text = refused(cli(*words))
        assert not list(out.rglob("record.json"))
        return text

    other = data / "ucf101" / "split_zhou_UCF101.json"
    text = refusal(f"coop:dtd:{data}?split={other}", "data.shots=1")
    assert "28 of the 28 images in" in text
    assert "'Apply_Eye_Makeup/Apply_Eye_Makeup_001.jpg'" in text

    text = refusal(f"coop:ucf101:{data}", f"data.manifest={index}", "data.shots=1")
    assert "2 of the 2 train paths in" in text
    assert "are not in ucf101:coop: 'data/dtd/images/banded/banded_002.jpg'" in text

    text = refusal(f"coop:dtd:{data}", f"data.manifest={pickled}", "data.shots=1")
    assert "is a pickle, which is not read because a pickle can run any program" in text
    assert "json.dump" in text

    text = refusal(f"coop:dtd:{data}", f"data.manifest={index}", "data.shots=16")
    assert (
        "has fewer than 16 train examples of 2 of the 2 classes of dtd:coop: 'banded' has 1" in text
    )

    text = refusal(f"coop:dtd:{data}", f"data.manifest={data / 'dtd' / 'none.json'}")
    assert "cannot read the manifest" in text


def test_the_protocols_read_coops_data_folder():
    from clipadapt.core.experiments.sweep import load_protocol
    from clipadapt.datasets._coop import SETS

    transfer = load_protocol("cross_dataset")[1].eval_on
    shift = load_protocol("domain_shift")[1].eval_on

    assert set(transfer["coop:imagenet:*"]) == {f"coop:{name}:*" for name in SETS}
    assert len(shift["coop:imagenet:*"]) == 4


def test_base_to_new_of_a_published_draw(cli, records, tiny_clip, data, tmp_path):
    index = tmp_path / "indices" / "shot_1-seed_1.json"
    settings = ["seeds=[1]", "data.classes=base", f"data.manifest={index}", "data.shots=1"]
    also = "evaluation.also=[{split: test, classes: new}]"
    words = run("zero_shot", tiny_clip, f"dtd:{data}", tmp_path / "r", *settings, also)

    base, new = records(cli(*words))

    assert [r["evaluation"]["classes"] for r in (base, new)] == ["base", "new"]
    assert [r["per_class"]["classnames"] for r in (base, new)] == [["banded"], ["polka-dotted"]]
    assert base["data"]["n_train"] == 1


def test_the_templates_of_the_clip_paper(cli, records, tiny_clip, data, tmp_path):
    (record,) = records(
        cli("zeroshot", "--model", tiny_clip, "--dataset", f"coop:dtd:{data}", "--templates", "clip",
            "--out", tmp_path / "r", "--json")
    )  # fmt: skip

    assert len(record["evaluation"]["templates"]) == 8
    text = refused(
        cli("zeroshot", "--model", tiny_clip, "--dataset", "synthetic", "--templates", "clip", "--out", tmp_path / "s")
    )  # fmt: skip
    assert "no templates 'clip' for synthetic:5x16; accepted: single, 7, 80" in text
