"""Model families (noise.py) and spacings of the steps (spacing.py).  NumPy float64, no torch."""

from fastdiff.schedules.noise import NoiseSchedule
from fastdiff.schedules.origin import Origin
from fastdiff.schedules.spacing import SPACINGS, levels

__all__ = ["SPACINGS", "NoiseSchedule", "Origin", "levels"]
