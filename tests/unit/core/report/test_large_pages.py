"""Pages of thousands of runs: fast paths equal the plain ones, details are limited, repeated things are stored once."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from clipadapt.core.report import page_rows, section, svg
from clipadapt.core.report.answers import Answers, join, shared
from clipadapt.core.report.page import build_report
from clipadapt.core.scoring.statistics import crossed_p_value, examples_needed, letters_of_ties
from tests.unit.core.report.report_runs import save_all, save_run


def answers(seed: int, ids: np.ndarray, n_classes: int = 3) -> Answers:
    rng = np.random.default_rng(seed)
    labels = np.arange(ids.size) % n_classes
    predicted = rng.integers(n_classes, size=(1, ids.size))
    return Answers(ids, labels, predicted == labels, (seed,), predicted)


def test_answers_on_the_same_examples_are_joined_as_by_their_ids():
    ids = np.array([f"{i:03}" for i in range(40)])
    same, copied = ([answers(s, ids if one else ids.copy()) for s in range(4)] for one in (1, 0))

    fast, plain = join(same), join(copied)

    assert fast.ids is ids
    for name in ("ids", "labels", "values", "predicted"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(plain, name))
    for a, b in zip(shared(same[0], same[1]), shared(copied[0], copied[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def by_hand(column: np.ndarray, avoided: int) -> int:
    counts = Counter(int(c) for c in column)
    wrong = Counter({c: n for c, n in counts.items() if c != avoided})
    return (wrong or counts).most_common(1)[0][0]


@pytest.mark.parametrize("seeds", [1, 2, 3, 6])
def test_the_most_common_prediction_is_that_of_a_count_by_hand(seeds):
    rng = np.random.default_rng(seeds)
    predicted = rng.integers(3, size=(seeds, 300))
    avoided = rng.integers(-1, 3, size=300)

    found = page_rows._most_common(predicted, avoided)

    expected = [by_hand(column, c) for column, c in zip(predicted.T, avoided.tolist(), strict=True)]
    assert found.tolist() == expected


def test_p_values_are_those_of_scipys_distributions():
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = rng.normal(0.1, 1.0, size=(5, 60))
        seed, example = table.mean(axis=1), table.mean(axis=0)
        residual = table - seed[:, None] - example + table.mean()
        ms = (60 * seed.var(ddof=1), 5 * example.var(ddof=1), (residual**2).sum() / (4 * 59))
        use = ms[0] > ms[2], ms[1] > ms[2]
        terms = (use[0] * ms[0], use[1] * ms[1], (1 - sum(use)) * ms[2])
        variance = sum(terms) / table.size
        df = sum(terms) ** 2 / sum(x**2 / d for x, d in zip(terms, (4, 59, 236), strict=True))
        expected = 2 * stats.t.sf(abs(table.mean()) / np.sqrt(variance), df)
        assert crossed_p_value(table) == pytest.approx(expected, rel=1e-12)
    one = rng.integers(-1, 2, size=(1, 80)).astype(float)
    d, psi = abs(one.mean()), (one**2).mean()
    z = stats.norm.ppf(0.975) * np.sqrt(psi) + stats.norm.ppf(0.8) * np.sqrt(psi - d**2)
    assert examples_needed(one) == int(np.ceil((z / d) ** 2))


def test_marks_and_axes_that_several_charts_have_are_stored_once():
    def chart(top: float) -> str:
        axis = svg.linear_axis("accuracy", [0.0, top])
        return svg.plot("a chart", axis, axis, [svg.Series(0, [svg.Point(0.0, top)])])

    page = f"{chart(1)}<p>a</p>{chart(2)}{chart(1)}"
    html, kept = svg.shared(page)

    assert len(html) < len(page)
    (name,) = re.findall(r'<g id="(a\d+)" class="axes">', kept)
    assert html.count(f'<use href="#{name}"/>') == 2
    assert html.count('<g class="axes">') == 1  # of the other chart
    assert html.count('<use class="m" href="#m0"') == 3
    axes = re.search(f'<g id="{name}" (.*?</g>)', kept)
    assert axes is not None
    whole = html.replace(f'<use href="#{name}"/>', f"<g {axes[1]}")
    whole = re.sub(
        r'<use class="m" href="#m0" x="(\S+)" y="(\S+)"/>',
        rf'<path class="m" transform="translate(\1 \2)" d="{svg.SHAPES[0]}"/>',
        whole,
    )
    assert whole == page


def test_a_line_has_the_points_of_its_series():
    axis = svg.Axis("x", (0.0, 10.0), [])
    points = [
        svg.Point(float(x), float(y))
        for x, y in zip(range(10), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], strict=True)
    ]
    chart = svg.plot("a line", axis, axis, [svg.Series(0, points)])

    path = re.search(r'<path class="line" d="M([^"]+)"', chart)
    assert path is not None
    numbers = re.findall(r"-?[\d.]+", path[1])
    moves = np.reshape(numbers, (-1, 2)).astype(float).cumsum(axis=0)
    marks = [m.split() for m in re.findall(r"translate\(([\d. ]+)\)\" d", chart)]
    np.testing.assert_allclose(moves, np.array(marks, dtype=float), atol=1e-9)


# ---------------------------------------------------------------- details


def cards(html: str, anchor: str) -> int:
    found = re.search(rf'<section id="{anchor}">.*?</section>', html, flags=re.DOTALL)
    return found[0].count('<details class="card') if found else 0


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    save_all(folder)
    return folder


def rows(html: str) -> int:
    found = re.search(r'<section id="leaderboard">.*?</section>', html, flags=re.DOTALL)
    assert found is not None
    return found[0].count('<tr class="item"')


def test_detail_limits_the_cards_and_never_the_leaderboard(root):
    whole, _ = build_report(root, examples=False)
    best, _ = build_report(root, examples=False, detail=1)

    assert rows(best) == rows(whole) == 9
    assert cards(whole, "calibration") == 8
    assert cards(best, "calibration") == 3  # one for each number of shots
    assert "report --detail N" in best
    assert "report --detail N" not in whole
    assert build_report(root, examples=False, detail=100)[0] == whole


def test_a_large_page_has_the_best_two_rows_of_each_block(root, monkeypatch):
    monkeypatch.setattr(section, "ROWS_WITH_DETAILS", 4)

    html, _ = build_report(root, examples=False)

    assert rows(html) == 9
    assert cards(html, "calibration") == 6
    assert cards(html, "classes") == 6
    assert cards(html, "examples") == 3
    assert "the best 2 rows of each block" in html


def test_a_long_curve_has_one_mark_where_it_was_selected(tmp_path):
    from clipadapt.core.records.run_store import RunStore

    store = RunStore(tmp_path)
    save_run(store, "clip/coop", 1.0)
    short = build_report(tmp_path, examples=False)[0]
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("clipadapt.core.report.sections.curves.MOST_MARKED", 2)
        long = build_report(tmp_path, examples=False)[0]

    def curves(html: str) -> str:
        found = re.search(r'<section id="curves">.*?</section>', html, flags=re.DOTALL)
        assert found is not None
        return found[0]

    assert curves(short).count('class="m"') > 3
    assert curves(long).count('class="m"') < curves(short).count('class="m"')
    assert "seed 1: val loss 0.400 at the end" in curves(long)
    assert len(curves(long)) < len(curves(short))


# ---------------------------------------------------------------- tie letters


def letters_by_sets(names: list[str], different: list[tuple[str, str]]) -> list[str]:
    """The insert-and-absorb algorithm as it is described, on sets of names."""
    sets = [frozenset(names)] if names else []
    for a, b in different:
        split = [s - {x} for s in sets if {a, b} <= s for x in (a, b)]
        everything = list(dict.fromkeys([s for s in sets if not {a, b} <= s] + split))
        sets = [s for s in everything if not any(s < other for other in everything)]
    ordered = sorted(sorted(names.index(x) for x in s) for s in sets)
    return [
        "".join(chr(97 + k) for k, s in enumerate(ordered) if i in s) for i in range(len(names))
    ]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_letters_of_ties_are_those_of_the_sets(share):
    rng = np.random.default_rng(round(100 * share))
    for n in range(9):
        names = [f"m{i}" for i in range(n)]
        pairs = [
            (a, b) for i, a in enumerate(names) for b in names[i + 1 :] if rng.random() < share
        ]
        rng.shuffle(pairs)
        given = [(str(a), str(b)) for a, b in pairs]
        assert letters_of_ties(names, given) == letters_by_sets(names, given)


def test_letters_of_forty_methods_are_found_at_once():
    names = [f"m{i}" for i in range(40)]
    far_apart = [(a, b) for i, a in enumerate(names) for j, b in enumerate(names) if j > i + 5]
    rng = np.random.default_rng(0)
    rng.shuffle(far_apart)  # with the first twenty pairs alone, there are thousands of sets

    letters = letters_of_ties(names, [(str(a), str(b)) for a, b in far_apart])

    assert len({x for word in letters for x in re.findall(r"[a-z]\d*", word)}) == 35
    assert letters[0] == "a"
