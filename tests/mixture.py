"""The problem solved on paper that several tests use: that of `fastdiff bench accuracy`."""

from fastdiff.accuracy.mixture import Mixture

__all__ = ["Mixture"]
