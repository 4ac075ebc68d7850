"""kzoo: research papers as Keras 3 parts, trained, served and explained.

Sub-packages carry Keras's own names (`kzoo.layers`, `kzoo.optimizers`, ...) and are imported when
they are first used, so that `import kzoo` costs nothing and `kzoo.client` never loads TensorFlow.
"""

import importlib

__version__ = "0.1.0"

_SUBPACKAGES = (
    "analysis", "callbacks", "client", "data", "explain", "layers", "losses", "metrics", "models",
    "ops", "optimizers", "papers", "plots", "regularizers", "reproductions", "serving", "training",
)  # fmt: skip
__all__ = [*_SUBPACKAGES, "__version__"]


def __getattr__(name):
    if name in _SUBPACKAGES:
        return importlib.import_module(f"kzoo.{name}")
    raise AttributeError(f"module 'kzoo' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
