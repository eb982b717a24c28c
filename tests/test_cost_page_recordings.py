"""Pages, tables and traces of real recordings, with hostile text wherever a recording can hold text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from markupsafe import escape
from playwright.sync_api import Browser
from rich.console import Console

from browsing import ENTITY, IMAGE, LINK, SCRIPT, Visit, headless, needs_chromium
from cost_recordings import record_all, spoil
from wholebatch import kernels
from wholebatch.cost.console import tell
from wholebatch.cost.page import render, write_page
from wholebatch.cost.recording import Recording, load
from wholebatch.cost.trace import has_trace, write_trace
from wholebatch.cost.verticals import VERTICALS, measured

pytestmark = pytest.mark.skipif(not kernels.native_available(), reason="the compiled part is missing here")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record_all(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def hostile(recording: Recording) -> Recording:
    return spoil(recording)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless() as opened:
        yield opened


def test_it_comes_back_as_it_was(recording: Recording, hostile: Recording, tmp_path: Path):
    """To the last bit, so that what is rendered elsewhere is what was rendered here."""
    for number, one in enumerate((recording, hostile)):
        path = tmp_path / f"{number}.json"
        one.save(path)
        assert load(path) == one


def alone(recording: Recording, name: str) -> Recording:
    return recording.model_copy(update={other: None for other in VERTICALS if other != name})


@needs_chromium
@pytest.mark.parametrize(("which", "scheme"), [("recording", "light"), ("hostile", "dark")])
def test_the_page(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path, which: str, scheme: str):
    one: Recording = request.getfixturevalue(which)
    sections = [module.describe(record) for module, record in measured(one, "section")]
    assert tuple(section.name for section in sections) == VERTICALS
    path = tmp_path / "report.html"
    write_page(one, path)
    visit = Visit(browser, path, 390, scheme)
    visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    pictures = [(section.name, shown.picture) for section in sections for shown in section.shown if shown.picture]
    for width in (390, 1200):
        visit.page.set_viewport_size({"width": width, "height": 900})
        visit.wait_for(f"[...document.querySelectorAll('.wide .main-svg')].every(svg => svg.clientWidth > {width / 2})")
        drawn = visit.drawn()
        assert drawn.keys() == {f"figure-{name}-{picture.name}" for name, picture in pictures}
        assert min(drawn.values()) > 0, drawn
        assert visit.overflow() <= 0
    visit.page.wait_for_timeout(50)  # an image with onerror would have failed by now
    assert visit.trouble == []
    assert visit.page.locator("img, a[href], iframe, object").count() == 0
    assert visit.page.locator("script").count() == 3
    for section in sections:
        here = visit.page.locator(f"section#{section.name}")
        tables = [shown.table for shown in section.shown if shown.table]
        assert here.locator("table").count() == len(tables) > 0
        assert here.locator("tbody tr").count() == sum(len(table.rows) for table in tables)
        assert here.locator("h2").text_content() == section.title
        assert here.locator(".answer").text_content() == section.answer[0]
        assert here.locator(".found li").all_text_contents() == list(section.answer[1:])
        assert here.locator(".remarks li").all_text_contents() == list(section.notes)
    visit.page.context.close()


@pytest.mark.parametrize("name", VERTICALS)
def test_a_page_of_one_opens_with_its_answer(recording: Recording, name: str):
    ((module, record),) = measured(alone(recording, name), "section")
    section = module.describe(record)
    header = render(alone(recording, name)).split("<header>", 1)[1].split("</header>")[0]
    assert f"<h1>{escape(section.title)}</h1>" in header
    assert f'<p class="lead">{escape(section.answer[0])}</p>' in header
    assert header.count('<div class="tile') - 1 == len(section.tiles) > 0  # one is the tiles' own
    assert all(f"<b>{escape(tile.value)}</b><span>{escape(tile.label)}</span>" in header for tile in section.tiles)


def test_the_console_shows_text_as_it_is(hostile: Recording):
    """Neither markup of rich nor anything a terminal would obey."""
    console = Console(width=400, markup=False, highlight=False, emoji=False, record=True, force_terminal=False)
    with console.capture() as captured:
        for renderable in tell(hostile):
            console.print(renderable)
    said = captured.get()
    assert "\x1b" not in said
    for text in (SCRIPT, IMAGE, LINK, ENTITY):
        assert text in said


def test_the_trace_is_of_the_format(recording: Recording, tmp_path: Path):
    """The JSON Object Format: spans with microseconds, each of a thread that is named, none over another."""
    assert has_trace(recording)
    write_trace(recording, tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["otherData"]["command"] == "wholebatch compare and more"
    events = trace["traceEvents"]
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) > 10
    assert {event["ph"] for event in events} <= {"M", "X", "s", "f"}
    ends: dict[tuple[int, int], float] = {}
    for event in sorted(spans, key=lambda event: (event["pid"], event["tid"], event["ts"])):
        lane = (event["pid"], event["tid"])
        assert lane in named
        assert event["dur"] > 0
        assert event["ts"] >= ends.get(lane, 0.0) - 1e-3  # whole nanoseconds, told in microseconds
        ends[lane] = event["ts"] + event["dur"]
    first = (tmp_path / "trace.json").read_bytes()
    write_trace(recording, tmp_path / "trace.json")
    assert (tmp_path / "trace.json").read_bytes() == first


def test_what_has_no_course_in_time_has_no_trace(recording: Recording, tmp_path: Path):
    for name in ("comparison", "plan"):
        assert not has_trace(alone(recording, name))
        with pytest.raises(ValueError, match=r"nothing to trace: .* `wholebatch timeline`"):
            write_trace(alone(recording, name), tmp_path / "trace.json")
    assert not (tmp_path / "trace.json").exists()
