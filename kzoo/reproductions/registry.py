"""The list of reproductions, filled by the decorator of each."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from kzoo.papers import Paper


@dataclass(frozen=True)
class Reproduction:
    """A claim of a paper and the function that measures it.

    Args:
        name: as in `kzoo reproduce NAME`.
        paper: where the claim is from.
        claim: what the paper says, in a sentence.
        run: `run(seed)` or `run(seed, data_dir)` -> {"what": number}, or that and a matplotlib
            figure.
    """

    name: str
    paper: Paper
    claim: str
    run: Callable


_REPRODUCTIONS: dict[str, Reproduction] = {}


def reproduction(paper, claim):
    """Registers the decorated function under its own name; see `Reproduction`.

    Its docstring says the set-up: data, model, training, and how it differs from the paper's.
    """

    def register(run):
        _REPRODUCTIONS[run.__name__] = Reproduction(run.__name__, paper, claim, run)
        return run

    return register


def names():
    """The names of all reproductions, sorted."""
    package = importlib.import_module("kzoo.reproductions")
    for module in pkgutil.iter_modules(package.__path__, "kzoo.reproductions."):
        importlib.import_module(module.name)
    return sorted(_REPRODUCTIONS)


def find(name):
    """Returns the `Reproduction` of this name.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"There is no reproduction {name!r}.{hint} The known: {', '.join(known)}")
    return _REPRODUCTIONS[name]
