"""The same net under several norms, on this engine and on torch eager: per step, in steps, and in time to a score."""
