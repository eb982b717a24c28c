"""``save="input"``: what batch norm gave is formed again in backward instead of being kept."""

from wholebatch.recomputing.scope import attach_scope, detach_scope, plan_output, saving_inputs

__all__ = ["attach_scope", "detach_scope", "plan_output", "saving_inputs"]
