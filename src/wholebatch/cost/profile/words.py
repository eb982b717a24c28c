"""What the profile says in sentences: the same on the terminal and on the page."""

from __future__ import annotations

from wholebatch.cost.profile.record import Conversion, Estimate, Layer, Profile, Rank, Spread, Times

NOTICEABLE = 0.05  # an overhead of the probes that is told as a doubt


def answer(record: Profile) -> list[str]:
    """What was found; the first sentence alone is a full answer."""
    if not record.layers:
        return [
            f"{record.target} calls no normalisation layer, so normalisation costs its step of "
            f"{seconds(record.step.median)} nothing that was seen, and there is nothing to convert."
        ]
    share, conversion = record.share, record.conversion
    first = (
        f"Normalisation takes {percent(share.median)} of the step of {seconds(record.step.median)} "
        f"({count(len(record.layers), 'layer')}; p20 to p80 "
        f"{percent(share.low)} to {percent(share.high)})"
    )
    if conversion is not None:
        first += f"; {_saving(conversion)}"
    sentences = [f"{first}."]
    most = max(record.layers, key=lambda layer: layer.share.median)
    if len(record.layers) > 1:
        sentences.append(
            f"The dearest layer is {most.name} ({most.kind}), with {percent(most.share.median)} of the step."
        )
    sentences += _about_ranks(record)
    return sentences


def notes(record: Profile) -> list[str]:
    """How it was measured, and what is doubtful."""
    told = list(record.notes)
    if not record.layers:
        return told
    if record.overhead is None:
        told.append("Too few steps were made to tell what the probes themselves cost.")
    else:
        told.append(f"The probes made a step {_overhead(record.overhead)}; a layer's share is of the step with them.")
        if record.overhead.median > NOTICEABLE:
            told.append(
                "That is a good part of it: the layers' own times have some of it in them, read them as upper bounds."
            )
    told.append(
        f"Measured in {record.rounds} rounds of {count(record.burst, 'step')} of each kind, with "
        f"{count(record.threads, 'thread')} of torch, on {record.device}. Backward times are those of the layer's own "
        "nodes in the graph of derivatives."
    )
    told.append(
        "Bytes are the least that any implementation moves where nothing stays in a cache: forward the input read and "
        "the output written once, backward the gradient and the input read and the input's gradient written once."
    )
    if any(rank.wait is not None for rank in record.ranks):
        told.append(
            "Whoever comes last to a meeting waits for nobody, so the shortest stay of any rank is taken for the "
            "exchange, and what another rank stayed longer, it waited. Other collectives, as of gradients, are not "
            "counted."
        )
    return told


def name(rank: Rank) -> str:
    """A rank by name."""
    return f"rank {rank.rank} on {rank.host}"


def seconds(value: float) -> str:
    """With three digits and a unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{_digits(value / size)} {unit}"
    return f"{_digits(value * 1e6)} µs"


def rate(layer: Layer, times: Times) -> float | None:
    """Bytes moved at least per second; None where that time is not the layer's own, but spent with other ranks."""
    spent = total(times)
    return (layer.forward_bytes + layer.backward_bytes) / spent if spent and times.wait is None else None


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def percent(share: float) -> str:
    """A share of 1 in percent, with a decimal where it is small."""
    return f"{100 * share:.1f} %" if abs(share) < 0.1 else f"{100 * share:.0f} %"


def within(spread: Spread | None) -> str:
    """``144 µs (120 to 180)``: median, p20 and p80 in one unit; a dash for None."""
    if spread is None:
        return "-"
    text = seconds(spread.median)
    size = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}[text.split()[-1]]
    return f"{text} ({_digits(spread.low / size)} to {_digits(spread.high / size)})"


def total(times: Times) -> float:
    """Medians of forward and backward together, in seconds."""
    return times.forward.median + (times.backward.median if times.backward else 0.0)


def count(number: int, what: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def interval(estimate: Estimate) -> str:
    """The median with the half width of its interval, ``12.3 % ± 1.2 %``; both ends where they are not alike."""
    low, high = estimate.median - estimate.low, estimate.high - estimate.median
    wide = max(low, high)
    if min(low, high) > 0.5 * wide:
        return f"{percent(estimate.median)} ± {percent(wide)}"
    return f"{percent(estimate.median)} (95 % interval {percent(estimate.low)} to {percent(estimate.high)})"


def kind(layer: Layer) -> str:
    """Its class and input: ``BatchNorm2d 32×16×8×8``."""
    return f"{layer.kind} {'×'.join(map(str, layer.shape))}".strip()


def _saving(conversion: Conversion) -> str:
    saving = conversion.saving
    does = "converting" if conversion.way == "convert" else "going back to torch.nn's batch norms"
    what = f"{does} ({count(len(conversion.layers), 'layer')})"
    if saving.low > 0:
        return f"{what} saves {interval(saving)} of it, measured"
    if saving.high < 0:
        turned = Estimate(median=-saving.median, low=-saving.high, high=-saving.low, pairs=saving.pairs)
        return f"{what} makes it slower by {interval(turned)}, measured"
    return f"{what} makes no difference that could be measured ({percent(saving.low)} to {percent(saving.high)} of it)"


def _overhead(overhead: Estimate) -> str:
    if overhead.low <= 0 <= overhead.high:
        return f"no slower that could be measured ({percent(overhead.low)} to {percent(overhead.high)})"
    if overhead.high < 0:
        return f"no slower ({interval(overhead)}, which is noise)"
    return f"slower by {interval(overhead)}"


def _about_ranks(record: Profile) -> list[str]:
    if len(record.ranks) < 2 or not any(rank.wait is not None for rank in record.ranks):
        return []
    waited = [rank for rank in record.ranks if rank.wait is not None and rank.exchange is not None]
    longest = max(waited, key=lambda rank: rank.wait.median if rank.wait else 0.0)
    assert longest.wait is not None
    assert longest.exchange is not None
    said = [
        f"At its {longest.meetings} meetings a step, {name(longest)} waits {seconds(longest.wait.median)} for the "
        f"others, and the exchange itself takes {seconds(longest.exchange.median)}."
    ]
    slowest = next((rank for rank in record.ranks if rank.rank == record.slowest), None)
    if slowest is not None and slowest.caused is not None:
        of = slowest.meetings * record.rounds * record.burst
        said.append(
            f"The slowest is {name(slowest)}: it came last to {slowest.last} of {of} meetings, and the others together "
            f"waited {seconds(slowest.caused.median)} a step for it."
        )
    else:
        said.append("No rank is the slowest: they wait for each other by turns.")
    return said
