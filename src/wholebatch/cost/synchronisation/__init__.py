"""Whose rows batch norm is over, where ranks train one net: what each choice costs per step, and what it reaches."""
