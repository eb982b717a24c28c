"""Write docs/does-batch-norm-break-parallelism.md and its figures from recordings of what normalisation costs.

``make cost`` measures everything anew (some ten minutes, on an otherwise idle machine), into docs/measurements/cost/,
and then writes the page. Without ``--measure`` the page is made of the recordings that are there; a test sees that it
was.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import jinja2
import plotly.graph_objects as go

from wholebatch.cost.comparison import claim
from wholebatch.cost.recording import Recording, load
from wholebatch.cost.timeline.record import Timeline
from wholebatch.cost.timeline.words import lasting, percent, share_of
from wholebatch.cost.verticals import measured
from wholebatch.pages.pictures import arrange, templates
from wholebatch.pages.section import Section

DOCS = Path(__file__).parent
NAME = "does-batch-norm-break-parallelism.md"
RECORDINGS = DOCS / "measurements" / "cost"
DRAW = ["timeline", "--features", "256", "--threads", "2", "--steps", "400"]
FEW, MANY = ["--batch-size", "16", "--hidden", "1024,1024"], ["--batch-size", "4096", "--hidden", "128,128"]
COMMANDS = {
    "compare": ["compare", "digits"],
    "compare-large": ["compare", "digits", "--batch-size", "256", "--norms", "batch,none", "--seeds", "2"],
    "timeline": DRAW,
    "straggler": [*DRAW, "--slow-thread", "1", "--by", "3x"],
    "alone": [*DRAW, "--norm", "none"],
    "alone-straggler": [*DRAW, "--norm", "none", "--slow-thread", "1", "--by", "3x"],
    "few-example": [*DRAW, *FEW, "--split", "example"],
    "few-neuron": [*DRAW, *FEW, "--split", "neuron"],
    "many-example": [*DRAW, *MANY, "--split", "example"],
    "many-neuron": [*DRAW, *MANY, "--split", "neuron"],
    "plan": ["plan", "--workers", "2..4096"],
}
"""What is measured, by the name of its recording."""
ROUNDS = 5


def measure(names: Sequence[str]) -> None:
    """Run these commands and keep their recordings: of timelines, which are compared with each other, the one with the
    median step of :data:`ROUNDS` that take turns."""
    RECORDINGS.mkdir(parents=True, exist_ok=True)
    drawn = [name for name in names if COMMANDS[name][0] == "timeline"]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if name not in drawn:
                run(name, Path(folder) / name)
                shutil.copy(Path(folder) / name / "recording.json", RECORDINGS / f"{name}.json")
        for turn in range(ROUNDS):
            for name in drawn:
                run(name, Path(folder) / f"{name}-{turn}")
        for name in drawn:
            paths = [Path(folder) / f"{name}-{turn}" / "recording.json" for turn in range(ROUNDS)]
            shutil.copy(sorted(paths, key=step_of)[ROUNDS // 2], RECORDINGS / f"{name}.json")


def run(name: str, out: Path) -> None:
    """One of the commands."""
    subprocess.run([sys.executable, "-m", "wholebatch", *COMMANDS[name], "--quiet", "--out", out], check=True)


def step_of(path: Path) -> float:
    """The median step of a timeline."""
    drawn = load(path).timeline
    assert drawn is not None
    return drawn.step_ns.median


def recordings() -> dict[str, Recording]:
    """All that are kept, by name."""
    return {name: load(RECORDINGS / f"{name}.json") for name in COMMANDS}


def page(kept: dict[str, Recording]) -> str:
    """The page, with the numbers of these recordings."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    template = environment.from_string((DOCS / f"{NAME}.jinja").read_text(encoding="utf-8"))
    drawn = {name: one.timeline for name, one in kept.items() if one.timeline is not None}
    return template.render(
        compare=kept["compare"].comparison,
        large=kept["compare-large"].comparison,
        plan=kept["plan"].plan,
        drawn=drawn,
        origins={name: one.origin for name, one in kept.items()},
        commands=COMMANDS,
        answers={name: list(section(one).answer) for name, one in kept.items()},
        sentence=claim.sentence,
        place=claim.place,
        lasting=lasting,
        percent=percent,
        share_of=share_of,
        ratio=ratio,
    )


def section(recording: Recording) -> Section:
    """What a page says of the one measurement in a recording."""
    ((module, record),) = measured(recording, "section")
    found: Section = module.describe(record)
    return found


def ratio(above: Timeline, below: Timeline) -> float:
    """Of two median steps."""
    return above.step_ns.median / below.step_ns.median


def figures(kept: dict[str, Recording]) -> dict[str, go.Figure]:
    """The pictures of the page, by file name: the sections' own, and one that explains."""
    pictures: dict[str, go.Figure] = {"cost-splitting": draw_splitting()}
    wanted = {
        "compare": {"comparison-step": "cost-steps", "comparison-score-second-wholebatch": "cost-scores"},
        "timeline": {"lanes": "cost-timeline"},
        "straggler": {"lanes": "cost-straggler"},
        "plan": {"plan-steps": "cost-workers"},
    }
    for name, names in wanted.items():
        found = {shown.picture.name: shown.picture for shown in section(kept[name]).shown if shown.picture is not None}
        for picture, file in names.items():
            figure = go.Figure(found[picture].figure)
            figure.update_layout(height=found[picture].height, width=900 if found[picture].shape == "wide" else 620)
            pictures[file] = figure
    return pictures


def draw_splitting() -> go.Figure:
    """Twelve examples of a layer of eight neurons, over four workers: by example, and by neuron."""
    rows, columns, workers = 12, 8, 4
    figure = go.Figure()
    grids = {
        "by example": [[row * workers // rows for _ in range(columns)] for row in range(rows)],
        "by neuron": [[column * workers // columns for column in range(columns)] for _ in range(rows)],
    }
    colors = ["#2563c9", "#c2570c", "#0d7a5f", "#8a63d2"]
    for axis, (name, grid) in zip(("", "2"), grids.items(), strict=True):
        scale = [[(k + edge) / workers, color] for k, color in enumerate(colors) for edge in (0, 1)]
        figure.add_trace(
            go.Heatmap(
                z=grid,
                zmin=-0.5,
                zmax=workers - 0.5,
                colorscale=scale,
                showscale=False,
                xgap=2,
                ygap=2,
                xaxis=f"x{axis}",
                yaxis=f"y{axis}",
            )
        )
        figure.add_annotation(
            text=f"<b>{name}</b>", x=0.5, y=1.1, xref=f"x{axis} domain", yref=f"y{axis} domain", showarrow=False
        )
    figure.update_layout(
        arrange(
            height=380,
            width=900,
            margin={"l": 40, "r": 14, "t": 50, "b": 40},
            xaxis={"domain": [0, 0.46], "title": {"text": "neurons"}, "showticklabels": False},
            yaxis={"title": {"text": "examples of the mini-batch"}, "showticklabels": False, "autorange": "reversed"},
            xaxis2={"domain": [0.54, 1], "title": {"text": "neurons"}, "showticklabels": False, "anchor": "y2"},
            yaxis2={"showticklabels": False, "autorange": "reversed", "anchor": "x2"},
        )
    )
    return figure


def draw(kept: dict[str, Recording]) -> None:
    """Write the figures as SVG, in the light colours, on white."""
    for name, figure in figures(kept).items():
        figure.update_layout(template=templates()["light"], paper_bgcolor="#ffffff", plot_bgcolor="#ffffff")
        (DOCS / "figures" / f"{name}.svg").write_bytes(figure.to_image(format="svg"))


@click.command()
@click.option("--measure", "anew", is_flag=True, help="Measure anew first.")
@click.option("--only", multiple=True, type=click.Choice(list(COMMANDS)), help="Measure this one alone; several times.")
def main(anew: bool, only: tuple[str, ...]) -> None:
    """Write the page and its figures."""
    if anew:
        measure(only or list(COMMANDS))
    kept = recordings()
    draw(kept)
    (DOCS / NAME).write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
