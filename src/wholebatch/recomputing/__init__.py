"""``save="input"``: what batch norm gave is formed again in backward instead of being kept."""

from wholebatch.recomputing.held import Held
from wholebatch.recomputing.recipes import is_plain
from wholebatch.recomputing.scope import attach_scope, detach_scope, plan_output, saving_inputs

__all__ = ["Held", "attach_scope", "detach_scope", "is_plain", "plan_output", "saving_inputs"]
