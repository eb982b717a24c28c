"""Other people's models: their batch norms changed into ours and back, folded away, and given exact statistics."""

from wholebatch.conversion.convert import convert, revert
from wholebatch.conversion.fold import FoldReport, fold
from wholebatch.conversion.recalibrate import recalibrate

__all__ = ["FoldReport", "convert", "fold", "recalibrate", "revert"]
