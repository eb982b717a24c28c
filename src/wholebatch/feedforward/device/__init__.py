"""The device engine: training on a GPU, or, as its tests do, the same steps on the CPU."""

from wholebatch.feedforward.device.engine import DeviceEngine

__all__ = ["DeviceEngine"]
