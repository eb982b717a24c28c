"""What a preprocessing learns, by several ranks: each looks at its columns, and they tell each other what they saw."""

from __future__ import annotations

import polars as pl

from wholebatch.sharing.messages import Group, tell
from wholebatch.tables.errors import TableError
from wholebatch.tables.learning import assemble, check, check_height, learn_numbers
from wholebatch.tables.looking import Look, look_at
from wholebatch.tables.preprocessing import Preprocessing
from wholebatch.tables.state import NumberState, PreprocessingState


def learn_together(own: pl.DataFrame, names: list[str], rows: int, group: Group) -> PreprocessingState:
    """:func:`wholebatch.tables.learning.learn` of a table of which each rank has some columns; every rank calls it.

    Args:
        own: this rank's columns.
        names: those of all ranks, in the order of the table; all else is passed over.
        rows: of the table.

    Raises:
        TableError: as ``learn``, the same sentence on all ranks.
    """
    check_height(rows)
    own = own.select([name for name in names if name in own.columns])
    seen, fault = [], None
    for series in own:
        try:
            seen.append(look_at(series))
        except TableError as error:
            fault = [series.name, str(error)]
            break
    told = tell({"looks": [look.model_dump() for look, _ in seen], "fault": fault}, group, "what columns hold")
    _raise_first([each["fault"] for each in told], names)
    found = {look["name"]: Look.model_validate(look) for each in told for look in each["looks"]}
    looks = [found[name] for name in names]
    check(looks, rows)
    alone = sum(len(look.parts) for look in looks) == 1
    numbers = learn_numbers([look for look, _ in seen], [v for _, values in seen for v in values], alone=alone)
    told = tell([number.model_dump() for number in numbers], group, "the scales of numbers")
    scaled: dict[str, list[NumberState]] = {name: [] for name in names}
    for number in (NumberState.model_validate(number) for each in told for number in each):
        scaled[number.column].append(number)
    return assemble(looks, [number for name in names for number in scaled[name]])


def check_together(preprocessing: Preprocessing, own: pl.DataFrame, group: Group) -> None:
    """Raise, on all ranks the same, where a value of any row is none that the preprocessing takes.

    It has learned from the training rows alone, and is given all. Arguments as :func:`learn_together`.
    """
    fault = None
    for series in own:
        try:
            if series.name in preprocessing.needed:
                preprocessing.check_column(series)
        except TableError as error:
            fault = [series.name, str(error)]
            break
    _raise_first(tell(fault, group, "what columns hold"), preprocessing.needed)


def _raise_first(faults: list[list[str] | None], names: list[str]) -> None:
    """Raise the fault (column, sentence) of the column that comes first in the table."""
    found = {fault[0]: fault[1] for fault in faults if fault is not None}
    for name in names:
        if name in found:
            raise TableError(found[name])
