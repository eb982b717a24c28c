"""From a person's table to numbers for the net, and back."""

from wholebatch.tables.errors import TableError
from wholebatch.tables.preprocessing import Column, Preprocessing
from wholebatch.tables.reading import read_table
from wholebatch.tables.target import Target, drop_missing
from wholebatch.tables.weights import weights

__all__ = ["Column", "Preprocessing", "Target", "TableError", "drop_missing", "read_table", "weights"]
