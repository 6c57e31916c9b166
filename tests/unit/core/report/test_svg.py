from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from clipadapt.core.report import svg as _svg


def test_linear_axis_has_round_ticks_within_its_range():
    axis = _svg.linear_axis("accuracy, %", [0.312, 0.748], factor=100)

    assert axis.ticks == [
        (pytest.approx(0.3), "30"), (pytest.approx(0.4), "40"), (pytest.approx(0.5), "50"),
        (pytest.approx(0.6), "60"), (pytest.approx(0.7), "70"),
    ]  # fmt: skip
    assert axis.range[0] < 0.312 < 0.748 < axis.range[1]
    assert _svg.linear_axis("loss", [0.5, 0.5]).range == pytest.approx((0.45, 0.55))
    assert len(_svg.linear_axis("nothing", []).ticks) > 1


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0.69, 0.785], ["70.0", "72.5", "75.0", "77.5"]),  # steps of 2.5
        ([0.1990, 0.2010], ["19.90", "19.95", "20.00", "20.05", "20.10"]),
        ([0.0, 1.0], ["0", "25", "50", "75", "100"]),
    ],
)
def test_the_labels_of_ticks_are_their_values(values, names):
    axis = _svg.linear_axis("accuracy, %", values, factor=100)

    assert [name for _, name in axis.ticks] == names
    assert [float(name) for _, name in axis.ticks] == pytest.approx([
        100 * t for t, _ in axis.ticks
    ])


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1e2, 1e7], ["100", "1k", "10k", "100k", "1M", "10M"]),
        ([0, 23_058], ["0", "20k"]),
        ([0.02, 3.0], ["0.1", "1"]),
        ([0], ["0"]),
    ],
)
def test_log_axis_labels_decades_and_includes_zero(values, names):
    axis, places = _svg.log_axis("parameters", values)

    shown = [name for _, name in axis.ticks]
    assert [n for n in names if n not in shown] == []
    assert places.keys() == set(values)
    assert [places[v] for v in sorted(values)] == sorted(places.values())
    assert all(axis.range[0] < at < axis.range[1] for at in places.values())


def test_a_chart_is_well_formed_and_its_points_are_at_their_values():
    hostile = '<b>&"'
    series = _svg.Series(
        9,
        [_svg.Point(0, 0.0, title=hostile), _svg.Point(1, 1.0, 0.5, 1.0, ring=True)],
        {"method": hostile},
    )
    x, y = _svg.Axis("x", (0, 1), [(0, hostile)]), _svg.Axis("y", (0, 1), [(1, "1")])

    root = ET.fromstring(_svg.plot(hostile, x, y, [series], bars=[(0, 0.5, 1.0, "ten")]))

    assert root.get("aria-label") == hostile
    (group,) = [g for g in root.iter("g") if g.get("data-method")]
    assert group.get("data-method") == hostile
    assert group.get("class") == "s c1 item"
    marks = [m.get("transform") for m in group.iter("path") if m.get("class") == "m"]
    places = [tuple(map(float, m[len("translate(") : -1].split())) for m in marks]
    assert places == [
        (_svg.LEFT, _svg.HEIGHT - _svg.BOTTOM), (_svg.WIDTH - _svg.RIGHT, _svg.TOP),
    ]  # fmt: skip
    assert {m.get("d") for m in group.iter("path") if m.get("class") == "m"} == {_svg.SHAPES[2]}
    assert [t.text for t in root.iter("title")] == ["ten", hostile, None]


def test_confusion_shades_are_shares_of_a_row():
    counts = np.array([[8.0, 0.0], [1.0, 1.0]])

    root = ET.fromstring(_svg.heat("confusion", ["<a>", "b"], counts))

    paths = {p.get("class"): p.get("d") for p in root.iter("path")}
    assert paths.keys() == {"h0", "h4", "h7"}
    assert paths["h4"].count("M") == 2  # one half, twice
    texts = [t.text for t in root.iter("text")]
    assert texts.count("<a>") == 2
    assert texts.count("8") == 1


def test_a_large_confusion_matrix_is_a_picture_with_one_pixel_per_cell():
    counts = np.diag(np.arange(1.0, 31.0))
    counts[3] = [1.0] * 30

    (tag,) = re.findall(
        r'^<img class="heat" alt="(.*)" src="data:image/png;base64,(.*)">$',
        _svg.heat('"large"', [str(i) for i in range(30)], counts),
    )

    assert tag[0] == "&quot;large&quot;"
    with Image.open(io.BytesIO(base64.b64decode(tag[1]))) as image:
        shades = np.asarray(image.convert("RGBA"))
    assert shades.shape == (30, 30, 4)
    assert set(shades[..., 3][np.eye(30, dtype=bool)]) == {255, 36}
    assert shades[3, :, 3].tolist() == [36] * 30
    assert shades[5, 6, 3] == 0
    assert (shades[..., :3] == _svg.INK).all()


def test_mean_counts_are_short():
    assert [_svg.short_count(v) for v in (0.3333, 2.0, 13.34, 9.97)] == ["0.3", "2", "13", "10"]


def test_single_seeds_are_dots_beside_the_mark_and_share_its_tooltip():
    point = _svg.Point(1.0, 0.5, title="mean", seeds=(0.4, 0.6))
    axis = _svg.linear_axis("accuracy", [0.4, 0.6])
    chart = ET.fromstring(_svg.plot("seeds", axis, axis, [_svg.Series(0, [point])]))

    (dots,) = [e for e in chart.iter() if e.get("class") == "seed"]
    heights = [float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)h0", dots.get("d") or "")]
    assert len(heights) == 2
    assert heights[0] > heights[1]  # 0.4 is lower on the chart
    assert {t.text for t in chart.iter() if t.tag.endswith("title")} == {"mean"}
