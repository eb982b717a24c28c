"""A person's own training step: what each normalisation layer takes of it, on each rank, and what converting saves."""
