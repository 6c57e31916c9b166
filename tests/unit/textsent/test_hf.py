from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipadapt.core.api.errors import DataError
from clipadapt.core.files import hub_client
from tests.unit.conftest import cached_repo

CARD = """---
dataset_info:
  features:
  - name: idx
    dtype: int64
  - name: sentence
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': worse
          '1': better
---
"""


def write(folder, split, texts, labels, text="text"):
    folder.mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"idx": list(range(len(texts))), text: texts, "label": labels}),
        folder / f"{split}-00000-of-00001.parquet",
    )


@pytest.fixture
def repo(hub_cache):
    """A repository in the hub cache, with declared class names and an unlabelled test split."""
    files = cached_repo(hub_cache, "org/reviews", "c" * 40)
    write(files / "data", "train", ["good", "bad", "fine"], [1, 0, 1], "sentence")
    write(files / "data", "validation", ["so so", "great"], [0, 1], "sentence")
    write(files / "data", "test", ["what?", "hm"], [-1, -1], "sentence")
    (files / "README.md").write_text(CARD)
    return files


def test_declared_class_names_and_an_unlabelled_split(open_text, repo):
    data = open_text("hf:org/reviews")
    assert data.name == "hf:org/reviews"
    assert data.classnames == ("worse", "better")
    assert data.splits == ("train", "val")
    assert list(data.split("train").inputs.examples) == ["good", "bad", "fine"]
    assert data.split("train").labels.tolist() == [1, 0, 1]
    assert data.split("val").inputs.ids == ("val/00000", "val/00001")
    assert any("'test' has no labels" in note for note in data.notes)
    assert "c" * 40 in data.source
    with pytest.raises(DataError, match="no split 'test'; it has: train, val"):
        data.split("test")


def test_a_revision_by_commit(open_text, repo):
    data = open_text("hf:org/reviews@" + "c" * 40)
    assert len(data.split("train")) == 3
    with pytest.raises(DataError, match="has no copy at revision v2"):
        open_text("hf:org/reviews@v2")


def test_columns_by_name_and_a_split_by_hash(open_text, hub_cache):
    files = cached_repo(hub_cache, "org/one", "d" * 40)
    n = 200
    table = {
        "quote": [f"text number {i}" for i in range(n)],
        "mood": [("sad", "glad")[i % 2] for i in range(n)],
    }
    with (files / "all.jsonl").open("w") as file:
        for row in zip(*table.values(), strict=True):
            file.write(json.dumps(dict(zip(table, row, strict=True))) + "\n")
    data = open_text("hf:org/one?text=quote&label=mood")
    assert data.classnames == ("glad", "sad")
    assert data.flags == ("split_by_hash",)
    assert sum(len(data.split(s)) for s in data.splits) == n
    with pytest.raises(DataError, match="usual name for the text; its columns: quote, mood"):
        open_text("hf:org/one")
    with pytest.raises(DataError, match="no column 'moods'; did you mean 'mood'"):
        open_text("hf:org/one?text=quote&label=moods")


def test_several_configurations(open_text, hub_cache):
    files = cached_repo(hub_cache, "org/two", "e" * 40)
    for name in ("a", "b"):
        write(files / name, "train", [f"{name} good", f"{name} bad"], [1, 0])
    (files / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: a\n  data_files: a/*.parquet\n"
        "- config_name: b\n  data_files: b/*.parquet\n---\n"
    )
    with pytest.raises(DataError, match=r"(?s)has several configurations: a, b.*\?config=a"):
        open_text("hf:org/two")
    with pytest.raises(DataError, match=r"the split '(val|test)' is empty"):
        open_text("hf:org/two?config=b")  # two rows cannot be split by hash


def test_empty_texts_and_missing_labels(open_text, hub_cache):
    files = cached_repo(hub_cache, "org/bad", "f" * 40)
    write(files, "train", ["good", "", "bad"], [1, 0, None])
    write(files, "test", ["good one", "bad one"], [1, 0])
    with pytest.raises(DataError, match=r"hf:org/bad, split train, row 2: the text .* is empty"):
        open_text("hf:org/bad")
    write(files, "train", ["good", "poor", "bad", ""], [1, 0, None, 0])
    data = open_text("hf:org/bad", on_bad_image="skip")
    assert data.skipped == 2
    assert len(data.split("train")) == 2


def test_files_that_do_not_match_their_card(open_text, repo):
    (repo / "README.md").write_text(CARD.replace("sentence", "phrase"))
    with pytest.raises(DataError, match=r"(?s)hf:org/reviews cannot be read: .*phrase"):
        open_text("hf:org/reviews")


def test_refusals(open_text, hub_cache):
    with pytest.raises(DataError, match="names no dataset"):
        open_text("hf:")
    with pytest.raises(DataError, match="'a/b/c' is not a valid name of a hub dataset"):
        open_text("hf:a/b/c")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set") as caught:
        open_text("hf:org/none")
    assert "rotten_tomatoes:offline" in caught.value.hint


def test_refusals_of_the_hub(open_text, hub_cache, monkeypatch):
    from huggingface_hub import errors

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def answer(kind):
        def ask(repo):
            raise kind.__new__(kind)

        monkeypatch.setattr(hub_client, "list_files", ask)

    answer(errors.RepositoryNotFoundError)
    with pytest.raises(DataError, match="no public dataset 'org/none'"):
        open_text("hf:org/none")
    answer(errors.GatedRepoError)
    with pytest.raises(DataError, match="'org/none' is gated"):
        open_text("hf:org/none")
    answer(errors.RevisionNotFoundError)
    with pytest.raises(DataError, match="'org/none' has no revision 'v9'"):
        open_text("hf:org/none@v9")


def test_the_cache_is_used_when_the_hub_is_unreachable(open_text, repo, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def ask(repo):
        raise ConnectionError("name not known")

    monkeypatch.setattr(hub_client, "list_files", ask)
    data = open_text("hf:org/reviews")
    assert len(data.split("train")) == 3
    assert "read from the hub cache" in data.notes[0]
    assert "name not known" in data.notes[0]


def test_from_a_hub_cache_named_by_the_environment(repo, tmp_path):
    """Run in a separate process, as the hub's client reads its environment when it is imported."""
    code = (
        "from clipadapt.core.api.data import DatasetOptions\n"
        "from textsent.datasets.hf import DATASET\n"
        "print(len(DATASET('org/reviews', DatasetOptions()).split('train')))\n"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == "3\n"
    assert done.stderr == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hub"]
