"""The report in a real browser: it shows its pictures, says no error, loads nothing, and runs nothing from outside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from playwright.sync_api import Browser

from browsing import ENTITY, IMAGE, LINK, LONG, SCRIPT, Visit, headless, needs_chromium
from tables_for_runs import quick_settings, write_small
from wholebatch import runs

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless() as opened:
        yield opened


def hostile_frame() -> pl.DataFrame:
    rng = np.random.default_rng(1)
    rows = 90
    a, b = rng.standard_normal((2, rows))
    kinds = np.array([SCRIPT, IMAGE, LINK, ENTITY])[(a > 0) + 2 * (b > 0)]
    return pl.DataFrame(
        {SCRIPT: a, IMAGE: b, LINK: rng.choice([SCRIPT, "plain"], rows), ENTITY: a + b, LONG: rng.standard_normal(rows)}
    ).with_columns(pl.Series("kind " + SCRIPT, kinds), pl.Series("up " + IMAGE, a > 0), pl.Series("red " + LINK, b > 0))


TARGETS = {
    "classification": (("kind " + SCRIPT,), ["figure-confusion", "figure-loss", "figure-score", "net"]),
    "regression": ((ENTITY, SCRIPT), [f"figure-{kind}-{i}" for kind in ("scatter", "residuals") for i in (0, 1)]),
    "multilabel": (("up " + IMAGE, "red " + LINK), ["figure-labels", "figure-loss", "figure-score", "net"]),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report for each task, of a table whose names and values are all hostile."""
    folder = tmp_path_factory.mktemp("<b>hostile & co")
    table = folder / "<img src=x onerror=alert(1)>.csv"
    hostile_frame().write_csv(table)
    made = {}
    for task, (target, _) in TARGETS.items():
        settings = quick_settings(table, *target, task=task, epochs=5)
        runs.begin(settings, folder / task, command=f"wholebatch train {IMAGE}").train()
        made[task] = folder / task / "report.html"
    return made


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("task", list(TARGETS))
def test_a_hostile_table(browser: Browser, reports: dict[str, Path], task: str, scheme: str):
    visit = Visit(browser, reports[task], 390, scheme)
    visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for width in (390, 1200):
        visit.page.set_viewport_size({"width": width, "height": 900})
        drawn = visit.drawn()
        assert set(TARGETS[task][1]) <= drawn.keys()
        assert min(drawn.values()) > 0, drawn
        visit.wait_for(f"document.querySelector('#figure-loss .main-svg').clientWidth > {width / 3}")
        assert visit.overflow() <= 0
    visit.page.wait_for_timeout(50)  # an image with onerror would have failed by now
    assert visit.trouble == []
    assert visit.page.locator("img, a[href], iframe, object").count() == 0
    assert visit.page.locator("script").count() == 3
    background = visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (background == "rgb(16, 20, 26)") == (scheme == "dark")
    visit.page.context.close()


def test_outside_text_is_shown_as_it_is(browser: Browser, reports: dict[str, Path]):
    """Class names in the confusion matrix, on its axes and on hover, are characters, not markup."""
    visit = Visit(browser, reports["classification"], 1200, "light")
    ticks = visit.page.locator("#figure-confusion .ytick text").all_text_contents()
    shown = {SCRIPT[:13] + "…", IMAGE[:13] + "…", LINK[:13] + "…", ENTITY[:13] + "…"}
    assert set(ticks) == shown
    box = visit.page.locator("#figure-confusion .nsewdrag").bounding_box()
    assert box is not None
    hovered = set()
    for i in range(4):
        visit.page.mouse.move(box["x"] + box["width"] * (i + 0.5) / 4, box["y"] + box["height"] * 0.125)
        visit.page.wait_for_selector("#figure-confusion .hovertext")
        visit.page.wait_for_timeout(120)
        hovered.add(visit.page.locator("#figure-confusion .hovertext").first.text_content())
    joined = " ".join(text or "" for text in hovered)
    for name in (SCRIPT, IMAGE, LINK, ENTITY):
        assert f"predicted: {name}" in joined
    heading = visit.page.locator("h1").text_content()
    assert heading is not None
    assert heading.startswith("kind " + SCRIPT)
    assert visit.trouble == []
    visit.page.context.close()


def test_the_scheme_may_change_while_it_is_read(browser: Browser, reports: dict[str, Path]):
    visit = Visit(browser, reports["classification"], 1200, "light")
    color = "getComputedStyle(document.querySelector('#figure-loss .lines path.js-line')).stroke"
    light = visit.page.evaluate(color)
    visit.page.emulate_media(color_scheme="dark")
    visit.wait_for(f"{color} !== {json.dumps(light)}")
    assert visit.trouble == []
    visit.page.context.close()


def test_numbers_on_hover(browser: Browser, reports: dict[str, Path]):
    """The loss that the hover shows is the one in metrics.jsonl."""
    visit = Visit(browser, reports["classification"], 1200, "light")
    visit.page.locator("#figure-loss").scroll_into_view_if_needed()
    box = visit.page.locator("#figure-loss .nsewdrag").bounding_box()
    assert box is not None
    visit.page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    visit.page.wait_for_selector("#figure-loss .hoverlayer text")
    visit.page.wait_for_timeout(120)
    text = " ".join(visit.page.locator("#figure-loss .hoverlayer text").all_text_contents())
    last = json.loads((reports["classification"].parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{last['loss']:.4f}" in text
    assert f"{last['validation_loss']:.4f}" in text
    visit.page.context.close()


@pytest.mark.parametrize("rows", [3, 80])
def test_small_and_plain_runs_are_drawn_too(browser: Browser, tmp_path: Path, rows: int):
    """No rows held out, one epoch, no hidden layer: a single point for each curve, and a net of two layers."""
    write_small(tmp_path / "table.csv", "a", "value", rows=rows)
    settings = quick_settings(
        tmp_path / "table.csv", "value", epochs=1, hidden=(), validation_fraction=0, patience=None
    )
    runs.begin(settings, tmp_path / "run").train()
    visit = Visit(browser, tmp_path / "run" / "report.html", 390, "light")
    drawn = visit.drawn()
    assert set(drawn) == {"figure-scatter-0", "figure-residuals-0", "figure-loss", "net"}
    assert min(drawn.values()) > 0, drawn
    assert visit.overflow() <= 0
    assert visit.trouble == []
    visit.page.context.close()


def test_many_classes_and_columns(browser: Browser, tmp_path: Path):
    """120 classes, 300 columns, 4 layers, on a phone: the most confused classes are drawn, all are in the table."""
    rng = np.random.default_rng(0)
    columns = {f"column number {i}": rng.standard_normal(720) for i in range(300)}
    pl.DataFrame(columns | {"kind": [f"kind {i % 120}" for i in range(720)]}).write_csv(tmp_path / "table.csv")
    settings = quick_settings(tmp_path / "table.csv", "kind", hidden=(64, 64, 64, 64), epochs=1)
    runs.begin(settings, tmp_path / "run").train()
    visit = Visit(browser, tmp_path / "run" / "report.html", 390, "dark")
    assert min(visit.drawn().values()) > 0
    assert visit.overflow() <= 0
    assert visit.trouble == []
    assert visit.page.get_by_text("39 classes with most errors are shown").count() == 1
    text = visit.page.content()
    assert all(f">kind {i}<" in text for i in range(120))
    assert all(f">column number {i}<" in text for i in range(300))
    visit.page.context.close()
