"""What a fitted preprocessing is, as plain checked values: all that is kept in a file, and nothing that executes."""

from __future__ import annotations

from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from wholebatch.tables.dates import PARTS
from wholebatch.tables.moments import FORMATS, YEAR_FIRST
from wholebatch.tables.scaling import Scale

Kind = Literal["number", "category", "date", "boolean"]


class Model(BaseModel):
    """Strict: no field may be missing, unknown, of another type, or NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


M = TypeVar("M", bound=Model)


def load(model: type[M], data: Any, what: str) -> M:
    """``data`` as a ``model``.

    Raises:
        ValueError: content that is corrupt or belongs to something else; says where and what.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "its top"
        raise ValueError(f"{what} is corrupt or not of this version: {where}: {first['msg']}") from None


class ColumnState(Model):
    """A column of the training table, how dates in it are written, and why it was dropped if it was."""

    name: str
    kind: Kind
    layout: str
    dropped: str | None


class NumberState(Model):
    """One number taken from a column: itself, or a part of a date. ``fill`` is in units of ``2**scale.exponent``."""

    column: str
    part: str | None
    fill: float
    indicator: bool
    scale: Scale


class CategoryState(Model):
    """The categories that have an output of their own, None for a missing value; ``others``: the rest share one."""

    column: str
    categories: list[str | None]
    others: bool


class PreprocessingState(Model):
    """Everything :class:`Preprocessing` is."""

    columns: list[ColumnState]
    numbers: list[NumberState]
    categories: list[CategoryState]
    notes: list[str]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        kinds = {column.name: column.kind for column in self.columns if column.dropped is None}
        if len({column.name for column in self.columns}) < len(self.columns):
            raise ValueError("two columns have one name")
        if not self.numbers and not self.categories:
            raise ValueError("there is no feature")
        used = {number.column for number in self.numbers} | {category.column for category in self.categories}
        if used != set(kinds):
            raise ValueError("columns and features do not agree")
        for number in self.numbers:
            if (kinds[number.column] == "date") != (number.part is not None) or number.part not in (None, *PARTS):
                raise ValueError(f"column {number.column!r} has no part {number.part!r}")
            if kinds[number.column] == "category":
                raise ValueError(f"column {number.column!r} is both a category and a number")
        for category in self.categories:
            if kinds[category.column] != "category":
                raise ValueError(f"column {category.column!r} is no category")
            if len(set(category.categories)) < len(category.categories):
                raise ValueError(f"column {category.column!r} has one category twice")
            texts = [text for text in category.categories if text is not None]
            if category.categories not in (sorted(texts), [*sorted(texts), None]):
                raise ValueError(f"the categories of column {category.column!r} are not in order")
            if not category.categories:
                raise ValueError(f"column {category.column!r} has no categories")
        for column in self.columns:
            if column.layout not in (YEAR_FIRST, *FORMATS) or (column.layout and column.kind != "date"):
                raise ValueError(f"column {column.name!r} has dates of no known layout: {column.layout!r}")
        features = [(number.column, number.part) for number in self.numbers]
        if len(set(features)) < len(features) or len({c.column for c in self.categories}) < len(self.categories):
            raise ValueError("one feature stands twice")
        return self
