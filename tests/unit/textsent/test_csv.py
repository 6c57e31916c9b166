from __future__ import annotations

import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipadapt.core.api.errors import DataError

ROWS = [("good film", "pos"), ("bad film", "neg"), ("fine", "pos"), ("dull", "neg")]


def write_csv(path, rows=ROWS, header=("text", "label"), separator=","):
    lines = [separator.join(header), *(separator.join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refuses(open_text, name, *parts):
    with pytest.raises(DataError) as caught:
        open_text(name)
    for part in parts:
        assert part in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    write_csv(tmp_path / "train.csv")
    write_csv(tmp_path / "validation.csv", [("so so", "neg"), ("great", "pos")])
    write_csv(tmp_path / "test.csv", [("awful", "neg"), ("lovely", "pos")])
    return tmp_path


def test_a_folder_of_three_files(open_text, folder):
    data = open_text(f"csv:{folder}")
    assert data.splits == ("train", "val", "test")
    assert data.classnames == ("neg", "pos")
    assert data.templates == ()
    train = data.split("train")
    assert list(train.inputs.examples) == [text for text, _ in ROWS]
    assert train.labels.tolist() == [1, 0, 1, 0]
    assert train.labels.dtype == np.int64
    assert train.inputs.ids == ("train/00000", "train/00001", "train/00002", "train/00003")
    assert data.split("val").labels.tolist() == [0, 1]
    assert data.name == f"csv:{folder.name}"
    assert data.flags == ()
    assert len(data.fingerprint) == 64


def test_every_format_gives_the_same_data(open_text, tmp_path):
    table = {
        "text": [t for t, _ in ROWS] * 2,
        "label": [label for _, label in ROWS] * 2,
        "split": ["train"] * 4 + ["test"] * 4,
    }
    rows = list(zip(*table.values(), strict=True))
    header = tuple(table)
    write_csv(tmp_path / "a.csv", rows, header)
    write_csv(tmp_path / "a.tsv", rows, header, "\t")
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps(dict(zip(header, row, strict=True))) for row in rows)
    )
    prints = {
        open_text(f"csv:{tmp_path / name}").fingerprint
        for name in ("a.csv", "a.tsv", "a.parquet", "a.jsonl")
    }
    assert len(prints) == 1


def test_columns_are_found_or_given(open_text, tmp_path):
    path = write_csv(
        tmp_path / "a.csv",
        [("x", "good", "1", "train", "b"), ("y", "bad", "0", "train", "a")],
        ("note", "Review", "Sentiment", "Split", "other one"),
    )
    assert open_text(f"csv:{path}").classnames == ("0", "1")
    named = open_text(f"csv:{path}?text=note&label=other%20one")
    assert list(named.split("train").inputs.examples) == ["x", "y"]
    assert named.classnames == ("a", "b")


def test_numbers_are_ordered_by_value(open_text, tmp_path):
    rows = [(f"text {i}", str(i), "train") for i in (10, 9, 2, 1)] * 3
    path = write_csv(tmp_path / "a.csv", rows, ("text", "label", "split"))
    assert open_text(f"csv:{path}").classnames == ("1", "2", "9", "10")


def test_whole_floats_and_booleans_of_parquet_are_classes(open_text, tmp_path):
    split = ["train", "train"]
    for label, names in (([1.0, 0.0], ("0", "1")), ([True, False], ("False", "True"))):
        pq.write_table(
            pa.table({"text": ["a", "b"], "label": label, "split": split}), tmp_path / "a.parquet"
        )
        assert open_text(f"csv:{tmp_path / 'a.parquet'}").classnames == names


def test_one_file_is_split_by_a_hash_that_adding_rows_does_not_move(open_text, tmp_path):
    rows = [(f"text number {i}", ("neg", "pos")[i % 2]) for i in range(400)]
    few = open_text(f"csv:{write_csv(tmp_path / 'few.csv', rows[:300])}")
    many = open_text(f"csv:{write_csv(tmp_path / 'many.csv', rows)}")
    assert few.flags == many.flags == ("split_by_hash",)
    sizes = [len(many.split(s)) for s in many.splits]
    assert sum(sizes) == 400
    assert sizes[0] == pytest.approx(320, abs=25)
    for split in few.splits:
        assert set(few.split(split).inputs.examples) <= set(many.split(split).inputs.examples)


def test_quotes_line_ends_and_a_byte_order_mark(open_text, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'\xef\xbb\xbftext,label,split\r\n"he said ""no"",\r\nthen left",0,train\r\nNA,1,train\r\n'
    )
    texts = list(open_text(f"csv:{path}").split("train").inputs.examples)
    assert texts == ['he said "no",\r\nthen left', "NA"]


def test_a_tsv_without_quoting(open_text, tmp_path):
    path = write_csv(
        tmp_path / "a.tsv",
        [('"great" he said', "1", "train"), ("no", "0", "train")],
        ("text", "label", "split"),
        "\t",
    )
    assert open_text(f"csv:{path}").split("train").inputs.examples[0] == '"great" he said'


def test_texts_longer_than_the_csv_module_allows(open_text, tmp_path):
    long = "word " * 40_000
    write_csv(tmp_path / "train.csv", [(long, "a"), ("b", "b")])
    assert open_text(f"csv:{tmp_path}").split("train").inputs.examples[0] == long


def test_another_encoding_by_name(open_text, tmp_path):
    (tmp_path / "train.csv").write_bytes("text,label\ncafé,a\nthé,b\n".encode("latin-1"))
    data = open_text(f"csv:{tmp_path}?encoding=latin-1")
    assert list(data.split("train").inputs.examples) == ["café", "thé"]


def test_the_fingerprint_sees_texts_and_labels(open_text, folder):
    before = open_text(f"csv:{folder}").fingerprint
    write_csv(folder / "test.csv", [("awful!", "neg"), ("lovely", "pos")])
    changed = open_text(f"csv:{folder}").fingerprint
    write_csv(folder / "test.csv", [("awful!", "pos"), ("lovely", "pos")])
    assert len({before, changed, open_text(f"csv:{folder}").fingerprint}) == 3


def test_duplicates_are_reported(open_text, folder):
    write_csv(folder / "test.csv", [("good film", "neg"), ("lovely", "pos")])
    data = open_text(f"csv:{folder}")
    assert data.flags == ("duplicates_across_splits", "duplicates_across_classes")
    assert (
        "texts in more than one split: 1, for example train.csv, row 1 = test.csv, row 1"
        in data.notes[0]
    )
    assert "more than one label" in data.notes[1]


def test_rows_without_text_or_label_can_be_left_out(open_text, folder):
    write_csv(folder / "train.csv", [*ROWS, ("", "neg"), ("text", ""), ("nan", "pos")])
    data = open_text(f"csv:{folder}", on_bad_image="skip")
    assert data.skipped == 3
    assert len(data.split("train")) == 4
    assert "3 rows without a text or label" in data.notes[0]


# ---------------------------------------------------------------- everyday files


def many(n=60, *, text="film number {}", label=("neg", "pos")):
    return [(text.format(i), label[i % 2]) for i in range(n)]


def texts_of(data):
    return sorted(t for s in data.splits for t in data.split(s).inputs.examples)


def test_stray_quotation_marks_join_no_rows_of_a_tsv(open_text, tmp_path):
    rows = many()
    rows[10] = ('"' + rows[10][0], "neg")
    rows[40] = (rows[40][0] + '"', "neg")
    path = write_csv(tmp_path / "a.tsv", rows, separator="\t")

    data = open_text(f"csv:{path}")

    assert texts_of(data) == sorted(text for text, _ in rows)
    assert "quotation marks are read as part of the text" in data.notes[0]


def test_a_tsv_that_quotes_its_fields_is_read_without_the_quotes(open_text, tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\n" + "".join(f'"film\tof\nday {i}"\t{i % 2}\n' for i in range(60)))
    data = open_text(f"csv:{path}")
    assert len(texts_of(data)) == 60
    assert texts_of(data)[0] == "film\tof\nday 0"
    assert data.notes == ()


def test_stray_quotation_marks_of_a_csv_are_reported_and_can_be_read_as_text(open_text, tmp_path):
    rows = many()
    rows[10] = ('"' + rows[10][0], "neg")
    rows[40] = (rows[40][0] + '"', "neg")
    path = write_csv(tmp_path / "a.csv", rows)

    joined = open_text(f"csv:{path}")
    assert len(texts_of(joined)) == 30
    assert "quotation marks join 61 lines into 31 rows" in joined.notes[0]
    assert joined.found == 60
    assert joined.left_out["joined to others by quotation marks"] == 30
    assert "many_left_out" in joined.flags

    assert len(texts_of(open_text(f"csv:{path}?quote=none"))) == 60


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_detected(open_text, tmp_path, separator):
    rows = [(text + ", well", label) for text, label in many()]
    path = write_csv(tmp_path / "a.csv", rows, separator=separator)
    data = open_text(f"csv:{path}")
    assert texts_of(data) == sorted(text for text, _ in rows)
    assert "is read as separated by" in data.notes[0]


def test_separators_by_name_by_character_and_by_a_line_of_the_file(open_text, tmp_path):
    rows = [("a~b; " + text, label) for text, label in many()]
    path = write_csv(tmp_path / "a.csv", rows, separator="~")
    refuses(open_text, f"csv:{path}?sep=~", "3 fields", "?sep=CHARACTER")
    path.write_text("sep=;\r\n" + "".join(f"{t};{k}\r\n" for t, k in [("text", "label"), *many()]))
    assert len(texts_of(open_text(f"csv:{path}"))) == 60
    write_csv(path, many(), separator=";")
    assert open_text(f"csv:{path}?sep=semicolon").notes == ()
    assert len(texts_of(open_text(f"csv:{path}?sep=%3B"))) == 60
    refuses(open_text, f"csv:{path}?sep=xy", "sep=xy is not a separator", "semicolon")
    refuses(open_text, f"csv:{path}?quote=maybe", "quote=maybe", "auto, double, none")


def test_columns_without_a_name_are_ignored(open_text, tmp_path):
    rows = [(*row, "", "", "") for row in many()]
    header = (" label ", "text", "", "", "")
    path = write_csv(tmp_path / "a.csv", [(b, a, *c) for a, b, *c in rows], header)
    data = open_text(f"csv:{path}")
    assert data.classnames == ("neg", "pos")
    assert data.notes == ()

    write_csv(
        path, [(b, a, "more" if i < 3 else "", "", "") for i, (a, b) in enumerate(many())], header
    )
    assert "columns without a name are ignored; 3 rows" in open_text(f"csv:{path}").notes[0]


def test_a_repeated_column_that_is_not_needed_does_not_matter(open_text, tmp_path):
    path = write_csv(
        tmp_path / "a.csv", [(*r, "x", "y") for r in many()], ("text", "label", "n", "n")
    )
    assert len(texts_of(open_text(f"csv:{path}"))) == 60
    pq.write_table(
        pa.table([["a"], ["b"], ["c"]], names=["text", "text", "label"]), tmp_path / "a.parquet"
    )
    refuses(open_text, f"csv:{tmp_path}/a.parquet", "several columns named 'text'")


def test_blank_rows_and_trailing_blank_cells_are_accepted(open_text, tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\ngood,a,,\nbad,b\n,,\n,\n\n")
    assert list(open_text(f"csv:{tmp_path}").split("train").inputs.examples) == ["good", "bad"]


@pytest.mark.parametrize(
    ("spellings", "kept"),
    [
        (("Pos", "pos", "neg"), ("neg", "pos")),
        (("0.0", "0", "1"), ("0", "1")),
        (("very  good", "very good", "bad"), ("bad", "very good")),
        (("Pos_1", "pos 1", "neg"), ("neg", "pos 1")),
    ],
)
def test_spellings_of_one_label_are_merged_and_reported(open_text, tmp_path, spellings, kept):
    odd, usual, other = spellings
    rows = [(f"film {i}", (usual, other)[i % 2], "train") for i in range(20)]
    rows += [("odd film", odd, "test"), ("other film", other, "test")]
    path = write_csv(tmp_path / "a.csv", rows, ("text", "label", "split"))
    data = open_text(f"csv:{path}")
    assert data.classnames == kept
    assert "labels that differ only in spelling are merged into one class" in data.notes[0]
    assert len(data.split("test")) == 2


def test_other_tables_of_a_folder_are_reported(open_text, folder):
    write_csv(folder / "extra.csv")
    assert "are left out: extra.csv" in open_text(f"csv:{folder}").notes[0]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "encoding", ["zlib", "rot13", "hex", "base64", "uu", "bz2", "idna%00", "%00"]
)
def test_codecs_that_are_not_text_encodings(open_text, folder, encoding):
    refuses(open_text, f"csv:{folder}?encoding={encoding}", "unknown encoding", "latin-1")


def test_utf16_is_recognised_by_its_byte_order_mark(open_text, tmp_path):
    (tmp_path / "train.csv").write_bytes("text,label\ngood,a\nbad,b\n".encode("utf-16"))
    refuses(open_text, f"csv:{tmp_path}", "is not UTF-8", "?encoding=utf-16")
    assert len(open_text(f"csv:{tmp_path}?encoding=utf-16").split("train")) == 2


def test_a_pipe_is_rejected(open_text, tmp_path):
    os.mkfifo(tmp_path / "train.csv")
    refuses(open_text, f"csv:{tmp_path}", "is not a regular file")
    refuses(open_text, f"csv:{tmp_path}/train.csv", "is not a regular file")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    refuses(open_text, f"csv:{tmp_path}/zero.csv", "is not a regular file")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "label": "\\ud800"}', "character that cannot be displayed (U+D800)"),
        ('{"text": "a", "label": "a\\u0000b"}', "character that cannot be displayed (U+0000)"),
        ("[" * 100_000, "line 1: not JSON"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "line 1: not JSON"),
    ],
)
def test_odd_json(open_text, tmp_path, line, message):
    (tmp_path / "train.jsonl").write_text(line + "\n")
    refuses(open_text, f"csv:{tmp_path}", message)
    (tmp_path / "train.jsonl").write_text("\n")
    refuses(open_text, f"csv:{tmp_path}", "train.jsonl is empty")


def test_a_missing_file_or_folder(open_text, tmp_path):
    refuses(open_text, f"csv:{tmp_path}/none.csv", "no such file or folder", "none.csv")
    refuses(open_text, "csv:", "has no path", "csv:PATH")
    refuses(open_text, f"csv:{tmp_path}", "contains no train, val or test table", "nothing")


def test_one_column_is_not_the_text_and_the_label(open_text, tmp_path):
    path = write_csv(tmp_path / "a.csv")
    name = f"csv:{path}?text=label&label=label"
    refuses(open_text, name, "'label' cannot be both text and label", "?text=COLUMN")
    refuses(open_text, f"csv:{path}?text=text&text=label", "names the option 'text' twice")


def test_an_unknown_extension(open_text, tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"")
    refuses(open_text, f"csv:{tmp_path}/a.xlsx", "'.xlsx'", ".csv .tsv .parquet .jsonl")


def test_two_files_for_one_split(open_text, folder):
    write_csv(folder / "dev.csv")
    refuses(open_text, f"csv:{folder}", "split 'val': dev.csv, validation.csv")


def test_a_missing_column_lists_the_columns(open_text, tmp_path):
    path = write_csv(tmp_path / "a.csv", header=("utterances", "label"))
    refuses(
        open_text, f"csv:{path}", "usual name for the text", "utterances, label", "?text=COLUMN"
    )
    refuses(
        open_text,
        f"csv:{path}?text=utterance",
        "no column 'utterance'; did you mean 'utterances'?",
        "its columns: utterances, label",
    )
    refuses(open_text, f"csv:{path}?txt=a", "'txt=a'", "did you mean 'text'?", "text=VALUE")
    refuses(open_text, f"csv:{path}?text=utterances&split=part", "no column 'part'")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("", "pos"), "train.csv, row 5: the text in column 'text' is empty"),
        (("   ", "pos"), "train.csv, row 5: the text in column 'text' is empty"),
        (("NaN", "pos"), "train.csv, row 5: the text in column 'text' is missing (NaN)"),
        (("words", ""), "train.csv, row 5: the label in column 'label' is missing"),
        (("words", "nan"), "train.csv, row 5: the label in column 'label' is missing"),
    ],
)
def test_empty_and_missing_values(open_text, folder, row, message):
    write_csv(folder / "train.csv", [*ROWS, row])
    refuses(open_text, f"csv:{folder}", message, "data.on_bad_image=skip")


def test_missing_values_of_parquet_and_jsonl(open_text, tmp_path):
    path = tmp_path / "train.parquet"
    for text, label in (([None, "b"], [1, 0]), (["a", "b"], [float("nan"), 0.0])):
        pq.write_table(pa.table({"text": text, "label": label}), path)
        refuses(open_text, f"csv:{tmp_path}", "train.parquet, row 1", "is missing")
    path.unlink()
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 1}\n{"label": 0}\n')
    refuses(open_text, f"csv:{tmp_path}", "train.jsonl, row 2", "missing (NaN)")


def test_a_text_that_is_not_text(open_text, tmp_path):
    pq.write_table(pa.table({"text": [1, 2], "label": [0, 1]}), tmp_path / "train.parquet")
    refuses(open_text, f"csv:{tmp_path}", "row 1: column 'text' contains 1 of type int, not a text")
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "train.jsonl").write_text('{"text": "\\ud83d", "label": 1}\n')
    refuses(open_text, f"csv:{tmp_path}", "half a Unicode character (U+D83D")
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": [1]}\n')
    refuses(open_text, f"csv:{tmp_path}", "column 'label' contains [1] of type list, not a label")


def test_a_label_outside_the_classes(open_text, folder):
    write_csv(folder / "test.csv", [("awful", "neutral")])
    refuses(
        open_text,
        f"csv:{folder}",
        "test.csv, row 1",
        "'neutral' is not one of the classes",
        "neg, pos",
    )


def test_only_one_class(open_text, folder):
    write_csv(folder / "train.csv", [("a", "pos"), ("b", "pos")])
    refuses(open_text, f"csv:{folder}", "all 2 rows", "have the label 'pos'")


def test_a_label_column_that_does_not_hold_classes(open_text, tmp_path):
    write_csv(tmp_path / "train.csv", [(f"t{i}", f"id{i}") for i in range(30)])
    refuses(open_text, f"csv:{tmp_path}", "30 different values in 30 rows", "?label=COLUMN")


def test_an_empty_split(open_text, folder):
    write_csv(folder / "test.csv", [])
    refuses(open_text, f"csv:{folder}", "the split 'test' is empty")
    (folder / "test.csv").write_bytes(b"")
    refuses(open_text, f"csv:{folder}", "test.csv is empty", "contain the column names")


def test_too_few_rows_to_split_by_hash(open_text, tmp_path):
    path = write_csv(tmp_path / "a.csv")
    refuses(open_text, f"csv:{path}", "a.csv has 4 rows", "empty", "a column 'split'")
    write_csv(path, [])
    refuses(open_text, f"csv:{path}", "a.csv has no rows")


def test_a_split_column_with_another_word(open_text, tmp_path):
    path = write_csv(tmp_path / "a.csv", [("t", "0", "tset")], ("text", "label", "split"))
    refuses(open_text, f"csv:{path}", "a.csv, row 1: 'tset' in column 'split'", "train, training")


def test_bytes_that_are_not_utf8(open_text, tmp_path):
    (tmp_path / "train.csv").write_bytes("text,label\ngood,a\ncafé,b\n".encode("latin-1"))
    refuses(
        open_text,
        f"csv:{tmp_path}",
        "train.csv is not UTF-8: byte 0xe9 at offset 21, line 3",
        "?encoding=latin-1",
    )
    refuses(open_text, f"csv:{tmp_path}?encoding=latin-one", "unknown encoding 'latin-one'")


def test_a_row_that_does_not_match_the_header(open_text, tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\ngood,a\nbad, really,b\n")
    refuses(open_text, f"csv:{path}", "line 3: 3 fields, but the header has 2: text, label")
    path.write_text('text,label\n"good,a\nbad, very,b\n')
    refuses(
        open_text, f"csv:{path}", "not a table of values separated by commas: line", "quote=none"
    )
    refuses(
        open_text, f"csv:{path}?quote=double", "not a table of values separated by commas: line"
    )
    path.write_text("text,text\na,b\n")
    refuses(open_text, f"csv:{path}", "several columns named 'text'", "?text=COLUMN")


def test_damaged_parquet_and_jsonl(open_text, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    refuses(open_text, f"csv:{tmp_path}/a.parquet", "'a.parquet' is not a Parquet file")
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n{"text"\n')
    refuses(open_text, f"csv:{tmp_path}/a.jsonl", "a.jsonl, line 2: not JSON")
    (tmp_path / "a.jsonl").write_text("[1]\n")
    refuses(open_text, f"csv:{tmp_path}/a.jsonl", "line 1: a JSON list, not an object")


def test_a_missing_split(open_text, tmp_path):
    write_csv(tmp_path / "train.csv")
    with pytest.raises(DataError, match=re.escape("has no split 'test'; it has: train")):
        open_text(f"csv:{tmp_path}").split("test")


@pytest.mark.parametrize("column", ["partition", "Set", "phase"])
def test_a_column_of_split_names_is_the_split_column(open_text, tmp_path, column):
    rows = [(f"film {i}", "ab"[i % 2], ("train", "Test set")[i // 2 % 2]) for i in range(20)]
    data = open_text(f"csv:{write_csv(tmp_path / 'a.csv', rows, ('text', 'label', column))}")
    assert {split: len(part) for split, part in data.parts.items()} == {"train": 10, "test": 10}
    assert data.flags == ()
    assert f"the column '{column}' gives the split of a row" in data.notes[0]
    mixed = [*rows, ("film", "a", "other")]
    data = open_text(f"csv:{write_csv(tmp_path / 'b.csv', mixed, ('text', 'label', column))}")
    assert "split_by_hash" in data.flags


def test_an_open_quotation_mark_in_a_quoted_table_keeps_no_marks_in_the_texts(open_text, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + '"a film",pos\n"a flop",neg\n' * 20 + '"cut, sh')
    refuses(open_text, f"csv:{path}", "not a table of values separated by commas: line")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_of_unicode_are_named_in_the_hint(open_text, tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "a film,pos\na flop,neg\n" * 20, encoding=encoding)
    refuses(open_text, f"csv:{path}", "is not UTF-8", f"?encoding={encoding}")
