"""Metrics: what training and evaluation report."""

from kzoo.metrics.frechet_distance import FrechetDistance, frechet_distance

__all__ = ["FrechetDistance", "frechet_distance"]
