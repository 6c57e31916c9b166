"""The sheet is one well-formed file that loads nothing and escapes all names."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest

from clipadapt.core.records.schema import Calibration
from clipadapt.datasets._images import Thumbnail
from clipadapt.sheet import write_sheet
from tests.unit.core.records.test_records import make_record

NAME = 'a/<img src=x onerror="alert(1)">&\'.png'


class Reader(HTMLParser):
    """Parser that collects elements and text, and fails for unclosed elements."""

    def __init__(self):
        super().__init__()
        self.found, self.text, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data.strip())


def prediction(name, *top):
    ranked = [{"label": label, "probability": p} for label, p in top]
    return {"input": name, **ranked[0], "top": ranked}


@pytest.fixture
def sheet(tmp_path):
    def write(predictions, thumbnails=None, **changes):
        path = tmp_path / "sheet.html"
        made = thumbnails or [Thumbnail(b"jpeg", 224, 100)] * len(predictions)
        write_sheet(path, make_record(**changes), predictions, made)
        reader = Reader()
        reader.feed(path.read_text(encoding="utf-8"))
        assert reader.open == []
        return reader

    return write


def test_names_are_escaped_and_nothing_is_loaded(sheet):
    found = sheet([prediction(NAME, ("<b>cat", 0.75), ("dog", 0.25))])

    images = [attrs for tag, attrs in found.found if tag == "img"]
    assert images == [
        {
            "loading": "lazy",
            "width": "224",
            "height": "100",
            "alt": NAME,
            "src": "data:image/jpeg;base64," + base64.b64encode(b"jpeg").decode(),
        }
    ]
    assert not {"script", "link", "b", "iframe"} & {tag for tag, _ in found.found}
    policy = next(a["content"] for _, a in found.found if "http-equiv" in a)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert [t for t in found.text if t][-5:] == ["<b>cat", "75.0%", "dog", "25.0%", NAME]
    assert {"style": "--p:75.0%"} in [attrs for tag, attrs in found.found if tag == "li"]


def test_heading_describes_the_run_and_the_calibration(sheet):
    rows = [prediction(f"{i}.png", (f"class {i % 14}", 0.5)) for i in range(28)]

    plain = " ".join(sheet(rows).text)
    calibrated = " ".join(sheet(rows, calibration=Calibration(temperature=1.25)).text)

    assert "28 images" in plain
    assert "clip/coop (coop-quick) on stitched, trained on folder:photo, 4 shots, seed 1" in plain
    assert "not calibrated" in plain
    assert "calibrated on val, temperature 1.25" in calibrated
    assert "class 0 2" in plain
    assert "and 2 more classes" in plain


def test_responsive_and_dark_mode_styles(sheet, tmp_path):
    found = sheet([prediction("a.png", ("cat", 1.0))])

    text = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [
        attrs for _, attrs in found.found
    ]
    assert "prefers-color-scheme: dark" in text
    assert "color-scheme: light dark" in text
    assert "1 image</h1>" in text


def test_failed_write_keeps_the_old_sheet(sheet, tmp_path):
    sheet([prediction("a.png", ("cat", 1.0))])
    before = (tmp_path / "sheet.html").read_bytes()

    def broken():
        yield Thumbnail(b"", 1, 1)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        sheet([prediction("b.png", ("dog", 1.0))] * 2, broken())

    assert (tmp_path / "sheet.html").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.html"]
