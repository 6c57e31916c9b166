"""Folders of classes without train, val and test: zero-shot evaluates every image, trained methods a part."""

from __future__ import annotations

import shutil

import pytest

SAID = "folder:mine has no train, val and test: all 30 images are evaluated, because nothing is learned from them"


@pytest.fixture
def mine(pictures, tmp_path):
    """The pictures of all splits in one folder per class: ten of each of three classes."""
    for path in pictures.rglob("*.png"):
        target = tmp_path / "mine" / path.parent.name / f"{path.parent.parent.name}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for path in list((tmp_path / "mine").glob("*/test-0.png")):
        path.rename(path.with_name("first.png"))
    for folder in (tmp_path / "mine").iterdir():
        for path in sorted(folder.iterdir())[10:]:
            path.unlink()
    return tmp_path / "mine"


@pytest.fixture
def zeroshot(cli, tiny_clip, tmp_path):
    def call(dataset, *more):
        words = ["--model", tiny_clip, "--dataset", dataset, "--out", tmp_path / "runs", *more]
        return cli("zeroshot", *words, "--json")

    return call


def test_zeroshot_evaluates_every_image_and_says_so(zeroshot, records, mine):
    done = zeroshot(f"folder:{mine}")
    (record,) = records(done)

    assert (record["evaluation"]["split"], record["data"]["n_test"]) == ("all", 30)
    assert (record["data"]["n_train"], record["data"]["n_val"]) == (0, 0)
    assert SAID in done.err
    assert "--split test takes the part on which trained methods are evaluated" in done.err
    assert "split_by_hash" not in record["flags"]


def test_a_split_narrows_it(zeroshot, records, mine):
    whole, narrow = zeroshot(f"folder:{mine}"), zeroshot(f"folder:{mine}", "--split", "test")
    (record,) = records(narrow)

    assert record["evaluation"]["split"] == "test"
    assert 0 < record["data"]["n_test"] < 30
    assert SAID not in narrow.err
    assert record["run_id"] != records(whole)[0]["run_id"]


def test_folders_with_splits_are_as_before(zeroshot, records, pictures):
    done = zeroshot(f"folder:{pictures}")
    asked = zeroshot(f"folder:{pictures}", "--split", "test")

    assert records(done)[0]["evaluation"]["split"] == "test"
    assert records(done)[0]["run_id"] == records(asked)[0]["run_id"]
    assert "are evaluated" not in done.err


def test_a_table_of_images_without_splits_too(zeroshot, records, mine, tmp_path):
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name}" for p in sorted(mine.rglob("*.png"))]
    (tmp_path / "mine.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    (record,) = records(zeroshot(f"csv:{tmp_path / 'mine.csv'}"))

    assert (record["evaluation"]["split"], record["data"]["n_test"]) == ("all", 30)


def test_table_and_report_name_the_split(cli, zeroshot, mine, tmp_path):
    zeroshot(f"folder:{mine}")
    table = cli("table", tmp_path / "runs")
    report = cli("report", tmp_path / "runs", "--output", tmp_path / "page.html")

    assert "| folder:mine | all |" in table.out
    assert report.code == 0, report.err
    assert "cannot be opened" not in report.err


def test_what_is_trained_is_evaluated_on_test(cli, records, tiny_clip, mine, tmp_path):
    words = ["run", "linear_probe-quick", "--model", tiny_clip, "--dataset", f"folder:{mine}"]
    (record,) = records(
        cli(*words, "--set", "evaluation.split=auto", "--seeds", "1", "--out", tmp_path, "--json")
    )
    refused = cli(*words, "--set", "evaluation.split=all", "--out", tmp_path / "other")

    assert record["evaluation"]["split"] == "test"
    assert record["data"]["n_train"] > 0
    assert refused.code == 2
    assert "evaluation.split=all is for methods that are not trained" in refused.err
    assert not list(tmp_path.glob("other/**/record.json"))


def test_all_of_a_folder_with_splits_is_refused(cli, tiny_clip, pictures, tmp_path):
    words = ["run", "zero_shot", "--model", tiny_clip, "--dataset", f"folder:{pictures}"]
    done = cli(*words, "--set", "evaluation.split=all", "--out", tmp_path)

    assert done.code == 2
    assert "has splits of its own, train, val, test: 'all' is for data without splits" in done.err


def test_with_shots_there_is_a_draw_and_a_test_split(zeroshot, records, mine):
    (record,) = records(zeroshot(f"folder:{mine}", "--set", "data.shots=1"))

    assert record["evaluation"]["split"] == "test"
