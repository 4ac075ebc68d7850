"""Data sets, and pipelines of batches in an order that (seed, epoch) determines."""

from kzoo.data.augment import Augmentation, PerImage, RandomCropFlip
from kzoo.data.batch_binding import batches_bind, bind_batches, binding_examples, bound_batches
from kzoo.data.block_mnist import block_linear, block_mnist
from kzoo.data.boolean_xor import boolean_xor
from kzoo.data.chaosmining import chaosmining_audio, chaosmining_symbolic, chaosmining_vision
from kzoo.data.formulas import FORMULAS, Formula
from kzoo.data.loading import available, load
from kzoo.data.pipeline import Pipeline
from kzoo.data.preprocess import Scale01, Standardize
from kzoo.data.source import Source

__all__ = [
    "FORMULAS",
    "Augmentation",
    "Formula",
    "PerImage",
    "Pipeline",
    "RandomCropFlip",
    "Scale01",
    "Source",
    "Standardize",
    "available",
    "batches_bind",
    "bind_batches",
    "binding_examples",
    "block_linear",
    "block_mnist",
    "boolean_xor",
    "bound_batches",
    "chaosmining_audio",
    "chaosmining_symbolic",
    "chaosmining_vision",
    "load",
]
