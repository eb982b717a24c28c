"""scikit-learn's bundled sets by name, so that a first try needs no file."""

from __future__ import annotations

import polars as pl

# name: the target's column, and whether the classes have names of their own
BUNDLED = {
    "digits": ("digit", False),
    "iris": ("species", True),
    "wine": ("cultivar", True),
    "breast_cancer": ("diagnosis", True),
    "diabetes": ("progression", False),
}


def bundled_table(name: str) -> pl.DataFrame:
    """The set ``name`` (a key of :data:`BUNDLED`), its target as the last column."""
    from sklearn import datasets

    target, named = BUNDLED[name]
    found = getattr(datasets, f"load_{name}")()
    frame = pl.DataFrame(found.data, schema=list(map(str, found.feature_names)))
    values = found.target_names[found.target] if named else found.target
    return frame.with_columns(pl.Series(target, values.tolist()))
