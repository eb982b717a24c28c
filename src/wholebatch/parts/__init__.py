"""Batch norm over parts of the mini-batch that one process takes in turn."""

from wholebatch.parts.nodes import normalise_in_turn, unite
from wholebatch.parts.party import PARTY, UNCOMPILED, Arrival, Keep, Party, Run, count_call

__all__ = ["PARTY", "UNCOMPILED", "Arrival", "Keep", "Party", "Run", "count_call", "normalise_in_turn", "unite"]
