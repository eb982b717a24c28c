"""What normalisation costs, measured: compared, drawn over time, by layer, and planned for many workers."""
