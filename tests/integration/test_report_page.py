"""The report page in headless Chromium, used with pointer and keyboard, without a network."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from urllib.parse import unquote

import pytest

from clipadapt.core.report.page import write_report
from tests.integration.browser import Page, find_chromium
from tests.unit.core.report.report_runs import DATA, HOSTILE, save_all

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

ROWS = "Array.from(document.querySelectorAll('#leaderboard tbody tr'))"
SHOWN = f"{ROWS}.filter(r => r.offsetParent !== null)"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    save_all(root / "runs")
    write_report(root / "runs", root / "report.html")
    return root / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    assert CHROMIUM is not None
    with Page(CHROMIUM) as page:
        yield page


@pytest.fixture
def page(browser, output) -> Page:
    browser.messages.clear()
    browser.requests.clear()
    browser.look(1280, 900)
    browser.open(output)
    return browser


def column(page: Page, name: str) -> list[str]:
    """Values that a column is sorted by, in the order of the rows."""
    return page.evaluate(
        "(() => { const heads = Array.from(document.querySelectorAll('#leaderboard thead th'));"
        f"const at = heads.findIndex(h => h.textContent.trim() === '{name}');"
        f"return {ROWS}.map(r => r.cells[at].dataset.sort ?? null); }})()"
    )


def head(name: str) -> str:
    return (
        "Array.from(document.querySelectorAll('#leaderboard thead th'))"
        f".find(h => h.textContent.trim() === '{name}')"
    )


def test_no_request_leaves_the_page_and_the_console_is_silent(page, output):
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate("document.querySelectorAll('section').forEach(s => s.scrollIntoView())")

    assert page.requests == [output.resolve().as_uri()]
    assert page.messages == []
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate(f"document.body.textContent.includes({HOSTILE!r})") is True


def test_an_injected_script_would_not_run(page):
    page.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.broken = 1';"
        "document.body.append(s); })()"
    )

    assert page.evaluate("window.broken ?? null") is None
    assert any("Content Security Policy" in m for m in page.messages)


def test_a_click_on_a_heading_sorts_with_unknown_values_last(page):
    before = column(page, "accuracy, %")

    page.evaluate(f"{head('accuracy, %')}.querySelector('button').click()")
    down = column(page, "accuracy, %")
    said = page.evaluate(f"{head('accuracy, %')}.getAttribute('aria-sort')")
    page.evaluate(f"{head('accuracy, %')}.querySelector('button').click()")
    up = column(page, "accuracy, %")

    known = sorted((float(v) for v in before if v is not None), reverse=True)
    assert [float(v) for v in down[:-1]] == known
    assert [float(v) for v in up[:-1]] == known[::-1]
    assert down[-1] is up[-1] is None  # the failed run
    assert said == "descending"
    assert page.evaluate(f"{head('accuracy, %')}.getAttribute('aria-sort')") == "ascending"
    page.evaluate(f"{head('method')}.querySelector('button').click()")
    assert column(page, "method") == sorted(column(page, "method"))
    assert page.evaluate(f"{head('accuracy, %')}.getAttribute('aria-sort')") == "none"


def test_the_keyboard_sorts_too(page):
    page.evaluate(f"{head('method')}.querySelector('button').focus()")
    page.press("Tab", 9)
    assert page.evaluate("document.activeElement.textContent") == "accuracy, %"
    page.press("Enter", 13)

    assert page.evaluate(f"{head('accuracy, %')}.getAttribute('aria-sort')") == "descending"


def test_filters_show_the_rows_charts_and_cards_that_match(page):
    def choose(name: str, value: str) -> None:
        page.evaluate(
            f"(() => {{ const s = document.querySelector('select[data-filter={name}]');"
            f"s.value = '{value}';"
            "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    total = page.evaluate(f"{ROWS}.length")
    choose("shots", "2")
    # Two methods; zero-shot stays as their baseline.
    assert sorted(page.evaluate(f"{SHOWN}.map(r => r.cells[0].dataset.sort)")) == [
        "clip/coop (own)", "clip/linear_probe (own)", "clip/zero_shot (own)",
    ]  # fmt: skip
    assert page.evaluate("document.getElementById('shown').textContent") == f"3 of {total} rows"

    choose("method", "clip/coop (own)")
    assert page.evaluate(f"{SHOWN}.length") == 1
    lines = page.evaluate(
        "Array.from(document.querySelectorAll('#shots svg.chart .item'))"
        ".filter(g => getComputedStyle(g).display !== 'none').map(g => g.dataset.method)"
    )
    assert lines == ["clip/coop (own)"]
    cards = page.evaluate(
        "Array.from(document.querySelectorAll('#calibration details'))"
        ".filter(d => d.offsetParent !== null).length"
    )
    assert cards == 1
    # An exchange has two methods and shows for either.
    pairs = page.evaluate(
        "Array.from(document.querySelectorAll('#examples details'))"
        ".filter(d => d.offsetParent !== null).map(d => [d.dataset.method, d.dataset.method2])"
    )
    assert pairs
    assert all("clip/coop (own)" in pair for pair in pairs)

    page.evaluate("document.querySelector('#filters button[type=reset]').click()")
    page.wait(f"{SHOWN}.length === {total}")


def test_one_kind_of_cost_is_shown_at_a_time(page):
    kinds = (
        "Array.from(document.querySelectorAll('#cost .panel'))"
        ".filter(p => p.offsetParent !== null).map(p => p.dataset.kind)"
    )
    assert page.evaluate(kinds) == ["parameters"]

    page.evaluate("document.querySelector('input[value=seconds]').click()")

    assert page.evaluate(kinds) == ["seconds"]
    assert (
        page.evaluate("document.querySelector('#cost figcaption').textContent") == f"{DATA}, test"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
def test_every_width_and_colour_scheme_is_readable(page, scheme, width, phone):
    page.look(width, 844, scheme=scheme, phone=phone)

    # Wide tables scroll in themselves, the page does not.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate(
        "(() => { const c = getComputedStyle(document.body); return [c.color, c.backgroundColor]; })()"
    )
    ink, paper = (sum(int(v) for v in c[4:-1].split(",")) for c in colours)
    assert (ink > paper) is (scheme == "dark")
    assert abs(ink - paper) > 400


def test_a_mark_has_a_tooltip(page):
    said = page.evaluate(
        "(() => { const mark = document.querySelector('#shots svg .pt .m');"
        "mark.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));"
        "const tip = document.getElementById('tip'); return tip.hidden ? null : tip.textContent; })()"
    )

    assert said is not None
    assert "1 shot on stitched" in said


# ---------------------------------------------------------------- search, address, CSV, links

SEARCH = (
    "(words => {{ const s = document.getElementById('search'); s.value = words;"
    "s.dispatchEvent(new Event('input', {{bubbles: true}})); }})({!r})"
)


def test_search_shows_the_rows_that_have_every_word(page):
    page.evaluate(SEARCH.format("CLIP/COOP stitched"))

    methods = page.evaluate(f"{SHOWN}.map(r => r.cells[0].dataset.sort)")
    assert methods
    assert set(methods) == {"clip/coop (own)"}
    page.evaluate(SEARCH.format("no-such-word"))
    assert page.evaluate(f"{SHOWN}.length") == 0
    assert page.evaluate("document.querySelector('#leaderboard .none').hidden") is False
    page.evaluate(SEARCH.format(""))
    assert page.evaluate(f"{SHOWN}.length === {ROWS}.length") is True


def test_the_address_holds_filters_search_and_order(page):
    page.evaluate(
        "(() => { const s = document.querySelector('select[data-filter=shots]'); s.value = '2';"
        "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    page.evaluate(SEARCH.format("clip"))
    page.evaluate(f"{head('accuracy, %')}.querySelector('button').click()")
    before = page.evaluate(f"{SHOWN}.map(r => r.cells[0].dataset.sort)")
    address = page.evaluate("location.href")
    assert "shots=2" in address
    assert "search=clip" in address

    page.call("Page.navigate", url="about:blank")
    page.wait("location.protocol === 'about:'")
    page.call("Page.navigate", url=address)
    page.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    assert page.evaluate(f"{SHOWN}.map(r => r.cells[0].dataset.sort)") == before
    assert page.evaluate("document.getElementById('search').value") == "clip"
    assert page.evaluate(f"{head('accuracy, %')}.getAttribute('aria-sort')") == "descending"
    page.evaluate("document.querySelector('#filters button[type=reset]').click()")
    page.wait("!location.search.includes('shots')")


def test_what_is_shown_is_saved_as_csv(page):
    page.evaluate(SEARCH.format("clip/coop"))
    text = page.evaluate(
        "(async () => { let saved; const make = URL.createObjectURL;"
        "URL.createObjectURL = blob => { saved = blob; return make(blob); };"
        "HTMLAnchorElement.prototype.click = () => {};"
        "document.getElementById('csv').click(); URL.createObjectURL = make; return saved.text(); })()"
    )

    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == page.evaluate(f"{SHOWN}.length") > 0
    assert [r["method"] for r in rows if not r["method"].startswith("clip/coop")] == []
    for r in rows:
        low, value, high = (
            float(r[name]) for name in ("accuracy, % low", "accuracy, %", "accuracy, % high")
        )
        assert 0 <= low <= value <= high <= 100


def test_each_seed_links_to_the_folder_of_its_run(page, output):
    found = page.evaluate(
        "Array.from(document.querySelectorAll('#leaderboard tbody a')).map(a => a.getAttribute('href'))"
    )

    assert len(found) == len(set(found)) > 1
    assert all((output.parent / unquote(link) / "record.json").is_file() for link in found)


@pytest.mark.parametrize("width", [400, 1300])
def test_no_column_of_findings_and_leaderboard_is_cut(page, width):
    page.look(width, 900, phone=width == 400)

    cut = page.evaluate(
        "Array.from(document.querySelectorAll('#findings > .scroll, #leaderboard > .scroll'))"
        ".map(s => s.scrollWidth - s.clientWidth)"
    )
    assert all(extra <= 1 for extra in cut), cut
