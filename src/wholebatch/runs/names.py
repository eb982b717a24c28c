"""How the files of a run folder are called."""

CONFIG, METRICS, EVENTS = "config.json", "metrics.jsonl", "tensorboard"
NET, DESCRIPTION = "model.safetensors", "model.json"
RECORDING, REPORT = "report.json", "report.html"
