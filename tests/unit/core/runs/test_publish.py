"""Paths of this machine are not in a published record; names, templates and addresses are unchanged."""

from __future__ import annotations

import pytest

from clipadapt.core.runs.publish import without_paths
from tests.unit.core.records.test_records import make_record


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("folder:/home/jo/my pictures/pets", "folder:pets"),
        ("/home/jo/pets/", "pets"),
        ("~/data/pets.csv", "pets.csv"),
        ("csv:C:\\Users\\jo\\pets.csv", "csv:pets.csv"),
        ("made from /home/jo/pets, by hand", "made from pets, by hand"),
        ("the folder '/home/jo/pets'", "the folder 'pets'"),
        ("see https://huggingface.co/org/name", "see https://huggingface.co/org/name"),
        ("hf-hub:org/name@main", "hf-hub:org/name@main"),
        ("ViT-B-32/openai", "ViT-B-32/openai"),
        ("a photo of a {}.", "a photo of a {}."),
        ("1/2 and 3/4", "1/2 and 3/4"),
    ],
)
def test_a_path_becomes_a_name(text, expected):
    record = make_record(config={"data": {"name": text}, "list": [text]}, data__source=text)

    found = without_paths(record)

    assert found.config == {"data": {"name": expected}, "list": [expected]}
    assert found.data.source == expected
    assert found.environment.folder is None
    assert found.run_id == record.run_id


def test_class_names_and_templates_are_kept():
    names = ["/m/01g317", "/m/0k4j"]
    record = make_record(per_class={"classnames": names}, evaluation__templates=["/a/b/ of {}"])

    found = without_paths(record)

    assert found.per_class == {"classnames": names}
    assert found.evaluation.templates == ("/a/b/ of {}",)
