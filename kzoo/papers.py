"""The register: which paper became which part, and where its tests and recipes are.

A part registers itself with the `component` decorator; nothing is listed by hand. The contract
suite (`tests/contracts`), `kzoo papers`, `kzoo list`, `kzoo show` and `docs/papers.md` all read it.
"""

import ast
import fnmatch
import importlib
import inspect
import pathlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import keras

# Sub-packages that hold parts; the name of the sub-package is the kind of the part.
KINDS = (
    "layers", "losses", "metrics", "regularizers", "initializers", "constraints", "optimizers",
    "models", "solvers", "callbacks", "diffusion", "training", "explain", "analysis", "data",
)  # fmt: skip


@dataclass(frozen=True)
class Paper:
    """A paper as it is cited: `arxiv` is the bare identifier, for example "2409.03137"."""

    title: str
    authors: tuple[str, ...]
    year: int
    arxiv: str | None = None

    @property
    def url(self):
        return f"arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    def cite(self):
        names = self.authors[0] if len(self.authors) == 1 else f"{self.authors[0]} et al."
        return f"{names} ({self.year}), {self.title}" + (f", {self.url}" if self.url else "")


@dataclass(frozen=True)
class Example:
    """The one worked example that a part declares; the contract suite does the rest.

    Args:
        kwargs: constructor arguments, or a function that returns them (for those that hold models).
        inputs: `inputs(rng, batch)` returns the arguments of the part's call as float32/int32
            arrays whose first dimension is `batch`; a loss takes (y_true, y_pred), and a trainer
            of a model with inputs of its own is fed (x, y). Parts that the suite feeds itself
            (optimizers, other trainers, explainers) need none.
        no_xla: why the part cannot be compiled by XLA; empty where it can.
    """

    kwargs: Mapping | Callable[[], Mapping] = field(default_factory=dict)
    inputs: Callable | None = None
    no_xla: str = ""

    def build(self, cls, **overrides):
        """Returns the example's instance of `cls`."""
        kwargs = self.kwargs() if callable(self.kwargs) else self.kwargs
        return cls(**{**kwargs, **overrides})


@dataclass(frozen=True)
class Component:
    """A registered part."""

    name: str
    kind: str
    target: Callable
    papers: tuple[Paper, ...]
    example: Example | None
    not_served: str = ""

    @property
    def path(self):
        return f"kzoo.{self.kind}.{self.name}"

    @property
    def summary(self):
        return (inspect.getdoc(self.target) or "").split("\n", 1)[0]


_COMPONENTS: dict[str, Component] = {}


def component(*papers, example=None, not_served=""):
    """Registers the decorated class or function as a part that comes from `papers`.

    Classes with a `get_config` are registered with Keras as well, in the package "kzoo".

    Args:
        papers: one or more `Paper`.
        example: the part's worked `Example`; required for everything that the contract suite
            covers, optional for functions.
        not_served: of a part of `kzoo.explain`, why it is no signature of an export; empty where
            it is one.
    """
    if not papers or not all(isinstance(paper, Paper) for paper in papers):
        raise TypeError(f"`papers` must be one or more Paper. Received: {papers}")

    def register(target):
        kind = target.__module__.split(".")[1]
        if kind not in KINDS:
            raise ValueError(
                f"A part must live in one of the sub-packages {', '.join(KINDS)}. "
                f"Received: {target.__module__}.{target.__name__}"
            )
        part = Component(target.__name__, kind, target, papers, example, not_served)
        clash = _COMPONENTS.get(part.path)
        if clash is not None and clash.target.__module__ != target.__module__:
            raise ValueError(f"{part.path} is already registered by {clash.target.__module__}.")
        _COMPONENTS[part.path] = part
        if inspect.isclass(target) and hasattr(target, "get_config"):
            return keras.saving.register_keras_serializable("kzoo")(target)
        return target

    return register


def load_all():
    """Imports every module of the part packages, so that all parts are registered."""
    for kind in KINDS:
        try:
            package = importlib.import_module(f"kzoo.{kind}")
        except ModuleNotFoundError as error:
            if error.name != f"kzoo.{kind}":
                raise
            continue
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def components(kind=None, pattern="*"):
    """Returns the registered parts, sorted by path.

    Args:
        kind: a sub-package such as "optimizers"; None for all.
        pattern: a shell pattern on the part's name, ignoring case: "*densenet*".
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}. Received: {kind!r}")
    load_all()
    return sorted(
        (
            part
            for part in _COMPONENTS.values()
            if kind in (None, part.kind) and fnmatch.fnmatchcase(part.name.lower(), pattern.lower())
        ),
        key=lambda part: part.path,
    )


def papers():
    """Returns {paper: its parts}, sorted by title."""
    by_paper: dict[Paper, list[Component]] = {}
    for part in components():
        for paper in part.papers:
            by_paper.setdefault(paper, []).append(part)
    return dict(sorted(by_paper.items(), key=lambda item: item[0].title))


_LITERAL = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_MARK = re.compile(rf"pytest\.mark\.paper\(\s*((?:{_LITERAL}\s*)+),?\s*\)")


def find_tests(root):
    """Returns {paper title: test files that carry its `pytest.mark.paper` mark} below `root`."""
    found: dict[str, list[str]] = {}
    for file in sorted(pathlib.Path(root, "tests").rglob("test_*.py")):
        for title in {ast.literal_eval(f"({m})") for m in _MARK.findall(file.read_text("utf-8"))}:
            found.setdefault(title, []).append(file.relative_to(root).as_posix())
    return found


def find_recipes(root):
    """Returns {part name: recipes below `root` that name it}."""
    found: dict[str, list[str]] = {}
    for file in sorted(pathlib.Path(root, "recipes").glob("*.yaml")):
        for word in set(re.findall(r"\w+", file.read_text("utf-8"))):
            found.setdefault(word, []).append(file.relative_to(root).as_posix())
    return found
