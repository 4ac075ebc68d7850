"""Metrics: what training and evaluation report."""

from kzoo.metrics.frechet_distance import FrechetDistance, frechet_distance
from kzoo.metrics.retrieval import clustering_nmi, map_at_r, recall_at_k
from kzoo.metrics.retrieval_metrics import MeanAveragePrecisionAtR, RecallAtK

__all__ = [
    "FrechetDistance",
    "MeanAveragePrecisionAtR",
    "RecallAtK",
    "clustering_nmi",
    "frechet_distance",
    "map_at_r",
    "recall_at_k",
]
