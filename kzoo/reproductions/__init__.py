"""Claims of papers about trained models, run again and measured: `kzoo reproduce`."""

from kzoo.reproductions.registry import find, names, reproduction
from kzoo.reproductions.run import measure, write

__all__ = ["find", "measure", "names", "reproduction", "write"]
