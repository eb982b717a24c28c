"""The page of a recording in a real browser: it shows its pictures, loads nothing, runs nothing from outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
import pytest
from playwright.sync_api import Browser

from browsing import ENTITY, IMAGE, LINK, LONG, SCRIPT, Visit, headless, needs_chromium
from wholebatch.cost.page import render, render_sections
from wholebatch.cost.recording import Origin, Recording
from wholebatch.pages.page import measure, number
from wholebatch.pages.pictures import Picture, arrange, plain, short
from wholebatch.pages.section import Section, Shown, Table, Tile

HOSTILE = (SCRIPT, IMAGE, LINK, ENTITY, LONG)

RECORDING = Recording(
    origin=Origin(
        command=f"wholebatch profile {IMAGE}",
        date="2026-01-02T03:04:05Z",
        processor=SCRIPT,
        cores=1,
        instruction_set="avx2",
        versions={"torch": LINK},
    )
)


def picture(name: str, shape: str = "half") -> Picture:
    """Bars for hostile layers, which stand on the axis, in the legend and on hover."""
    bars = [
        go.Bar(
            x=list(range(len(HOSTILE))),
            y=[1, 2, 3, 4, 5],
            name=plain(kind[:40]),
            customdata=[plain(layer[:80]) for layer in HOSTILE],
            hovertemplate="%{customdata}<br>%{y} µs<extra></extra>",
        )
        for kind in (IMAGE, LINK)
    ]
    ticks = {"tickvals": list(range(len(HOSTILE))), "ticktext": [short(layer) for layer in HOSTILE]}
    figure = go.Figure(bars, arrange(xaxis=ticks, hovermode="closest"))
    return Picture(name, f"Time of {IMAGE}", f"Median of {SCRIPT}.", figure, shape)


def section(name: str) -> Section:
    rows = [[layer, i, 1234.5 * i, None] for i, layer in enumerate(HOSTILE)]
    table = Table(f"Layers of {SCRIPT}", ["layer", "calls", f"µs {LINK}", "wait"], rows)
    shown = [Shown(picture("time"), table), Shown(picture("wait"), table), Shown(picture("share"), None)]
    return Section(
        name=name,
        title=f"The model {IMAGE}",
        answer=[f"{layer} is slow." for layer in HOSTILE],
        shown=[*shown, Shown(picture("course", "wide"), None), Shown(None, table)],
        notes=[f"{layer} was left out." for layer in HOSTILE],
        tiles=[Tile("1.31 ×", LINK), Tile(LONG, "text"), Tile("3 %", SCRIPT)],
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless() as opened:
        yield opened


@needs_chromium
@pytest.mark.parametrize(("names", "scheme"), [(("profile",), "light"), (("comparison", "profile"), "dark")])
def test_a_hostile_recording(browser: Browser, tmp_path: Path, names: tuple[str, ...], scheme: str):
    path = tmp_path / "report.html"
    path.write_text(render_sections(RECORDING, [section(name) for name in names]), encoding="utf-8")
    visit = Visit(browser, path, 390, scheme)
    visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    pictures = {f"figure-{name}-{which}" for name in names for which in ("time", "wait", "share", "course")}
    for width in (390, 1200):
        visit.page.set_viewport_size({"width": width, "height": 900})
        visit.wait_for(f"document.querySelector('.wide .plot .main-svg').clientWidth > {width / 2}")
        drawn = visit.drawn()
        assert drawn.keys() == pictures
        assert set(drawn.values()) == {10}  # two bars for each of five layers
        assert visit.overflow() <= 0
    visit.page.wait_for_timeout(50)  # an image with onerror would have failed by now
    assert visit.trouble == []
    assert visit.page.locator("img, a[href], iframe, object").count() == 0
    assert visit.page.locator("script").count() == 3
    assert visit.page.locator("table").count() == 3 * len(names)
    for text in HOSTILE:
        assert visit.page.locator("tbody th", has_text=text).count() >= 3 * len(names)
        assert visit.page.locator(".remarks li", has_text=f"{text} was left out.").count() == len(names)
    background = visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (background == "rgb(16, 20, 26)") == (scheme == "dark")
    visit.page.context.close()


@needs_chromium
def test_the_numbers_on_hover_and_in_the_table(browser: Browser, tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text(render_sections(RECORDING, [section("profile")]), encoding="utf-8")
    visit = Visit(browser, path, 1200, "light")
    plot = "#figure-profile-time"
    visit.page.locator(plot).scroll_into_view_if_needed()
    ticks = visit.page.locator(f"{plot} .xtick text").all_text_contents()
    assert ticks == [text[:13] + "…" for text in HOSTILE]
    bar = visit.page.locator(f"{plot} .point path").nth(1).bounding_box()
    assert bar is not None
    visit.page.mouse.move(bar["x"] + bar["width"] / 2, bar["y"] + bar["height"] / 2)
    visit.page.wait_for_selector(f"{plot} .hovertext")
    assert f"{IMAGE}2 µs" in (visit.page.locator(f"{plot} .hovertext").first.text_content() or "")
    cells = visit.page.locator("tbody tr").nth(1).locator("th, td").all_text_contents()
    assert cells == [IMAGE, "1", "1,234", "–"]
    assert visit.trouble == []
    visit.page.context.close()


def test_a_recording_of_nothing_says_so():
    page = render(RECORDING)
    assert "This recording holds no measurement." in page
    assert "<section" in page  # how it was measured


def test_equal_recordings_give_equal_pages():
    assert render_sections(RECORDING, [section("plan")]) == render_sections(RECORDING, [section("plan")])


def test_a_lone_half_becomes_wide_and_names_stay_apart():
    shapes = ["half", "half", "half", "wide", "half", "square", "half", "half"]
    shown = [Shown(picture(f"p{i}", shape), None) for i, shape in enumerate(shapes)]
    one = replace(section("plan"), shown=[*shown, Shown(None, Table("c", ["a"], [[1]]))])
    page = render_sections(RECORDING, [one, replace(one, name="profile")])
    for name in ("plan", "profile"):
        found = [page.split(f'id="figure-{name}-p{i}"')[0].rsplit('<figure class="', 1)[1][:4] for i in range(8)]
        assert found == ["half", "half", "wide", "wide", "wide", "squa", "half", "half"]
    with pytest.raises(ValueError, match="two pictures of a page are named 'plan-p0'"):
        render_sections(RECORDING, [one, one])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (0.0, "0"),
        (12345, "12,345"),
        (-3, "-3"),
        (1.0, "1.000"),
        (123.456, "123.5"),
        (9.9996, "10.00"),
        (99999.4, "99,999"),
        (123456789.0, "123,456,789"),
        (0.00123, "0.001230"),
        (-0.5, "-0.5000"),
        (1e-7, "1.000e-07"),
        (2.5e12, "2.500e+12"),
        ("a < b", "a < b"),
    ],
)
def test_measures_have_four_digits(value: object, shown: str):
    assert measure(value) == shown


def test_scores_have_four_digits_after_the_point():
    assert [number(v) for v in (0.97, 1234567, None, 2e-9, "x")] == ["0.9700", "1,234,567", "–", "2.000e-09", "x"]
