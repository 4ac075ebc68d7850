"""Recipes: one YAML file that says how a model is trained, checked before anything starts.

A part is named with its arguments, `AdEMAMix: {learning_rate: 0.001}`, or alone where its defaults
will do. Names are those of kzoo and of Keras.
"""

import difflib
import pathlib
from typing import Annotated, Any, Literal

import pydantic
import yaml


class RecipeError(ValueError):
    """A recipe cannot be run as it is written; the message says which key, and what is allowed."""


class Part(pydantic.BaseModel):
    """A part by its name, with the arguments of its constructor."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    name: str
    arguments: dict[str, Any] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value):
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and len(value) == 1 and "name" not in value:
            ((name, arguments),) = value.items()
            if arguments is None or isinstance(arguments, dict):
                return {"name": name, "arguments": arguments or {}}
        if isinstance(value, dict) and value.keys() <= {"name", "arguments"}:
            return value
        raise ValueError("must be the name of a part, or {Name: {argument: value, ...}}")

    @pydantic.model_serializer
    def _to_yaml(self):
        return {self.name: self.arguments} if self.arguments else self.name


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


Positive = Annotated[int, pydantic.Field(gt=0)]

# Losses that compare the outputs of a batch with each other. To all others that take class numbers,
# output i is the score of class i.
EMBEDDING_LOSSES = (
    "Circle",
    "HyperbolicPairwiseConfusion",
    "SupervisedContrastiveLoss",
    "UnifiedPairLoss",
)
_ACCURACY = (Part(name="SparseCategoricalAccuracy", arguments={"name": "accuracy"}),)
_RETRIEVAL = (
    Part(name="RecallAtK", arguments={"k": 1, "name": "recall_at_1"}),
    Part(name="MeanAveragePrecisionAtR"),
)
# Methods that do not look at the labels of the data, but make their own.
_SELF_LABELLED = ("HypOneClass",)


class Data(_Section):
    """What is trained on: see `kzoo.data.load` and `kzoo.data.Pipeline`."""

    name: str
    batch_size: Positive = 32
    data_dir: str | None = None
    options: dict[str, Any] = {}
    train_split: str = "train"
    validation_split: str | None = "test"
    shuffle: bool = True
    preprocess: str = "none"
    augment: list[Part] = []
    drop_remainder: bool = False
    cache: bool = False


class Distribution(_Section):
    """Where it is trained: see `kzoo.training.make_strategy`."""

    strategy: Literal["single", "mirrored", "multi_worker", "tpu", "parameter_server"] = "single"
    tpu: str | None = None


class Regularizers(_Section):
    """Penalties: on all kernels, and on the logits."""

    kernel: Part | None = None
    logits: Part | None = None


class Checkpointing(_Section):
    """When the state of the run is written, besides the end of every epoch."""

    every: Positive | None = None
    keep: Positive = 2


class Export(_Section):
    """What is exported when the run has ended: see `kzoo.serving.export`."""

    name: str | None = None
    explainers: list[Part] = []
    rescale: tuple[float, float] = (1 / 255, 0.0)
    overlays: bool = False

    @pydantic.field_validator("rescale", mode="before")
    @classmethod
    def _pair(cls, value):
        return tuple(float(each) for each in value) if isinstance(value, list) else value


class Recipe(_Section):
    """A training run. The defaults are those of `kzoo.training.Loop` and of Keras.

    `stem` has layers that go in front of the model, such as `Resizing`; `head` those that go behind
    it, made with `include_top: false`. Where `metrics` are left out, they are the accuracy, or
    recall@1 and MAP@R for a loss on embeddings.
    """

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    data: Data
    stem: list[Part] = []
    model: Part
    head: list[Part] = []
    method: Part | None = None
    optimizer: Part = Part(name="AdamW")
    schedule: Part | None = None
    loss: Part = Part(name="SparseCategoricalCrossentropy", arguments={"from_logits": True})
    metrics: list[Part] | None = None
    regularizers: Regularizers = Regularizers()
    epochs: Positive = 10
    accumulate: Positive = 1
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16", "float64"] = "float32"
    jit_compile: bool = False
    steps_per_call: Positive | Literal["auto"] = "auto"
    deterministic: bool = False
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    distribution: Distribution = Distribution()
    callbacks: list[Part] = []
    tensorboard: bool = False
    on_nonfinite: Literal["stop", "continue"] = "stop"
    checkpoints: Checkpointing = Checkpointing()
    export: Export | None = None

    @property
    def gives_embeddings(self):
        """Whether the loss is on embeddings: the outputs are coordinates, and no classes."""
        return self.loss.name in EMBEDDING_LOSSES

    @property
    def is_self_labelled(self):
        """Whether the method makes its own labels: the classes of the data are not the model's."""
        return self.method is not None and self.method.name in _SELF_LABELLED

    @property
    def gives_classes(self):
        """Whether the outputs are scores of the classes of the data."""
        return not self.gives_embeddings and not self.is_self_labelled

    @pydantic.model_validator(mode="after")
    def _metrics_and_explainers(self):
        """Those of classes for scores of classes, those of embeddings for embeddings."""
        if self.metrics is None:
            self.metrics = list(_RETRIEVAL if self.gives_embeddings else _ACCURACY)
        if not self.gives_embeddings:
            return self
        allowed = [part.name for part in _RETRIEVAL]
        for number, metric in enumerate(self.metrics):
            if metric.name not in allowed:
                raise ValueError(
                    f"metrics.{number}: with {self.loss.name}, a loss on embeddings, it must be "
                    f"one of {', '.join(allowed)} (received: {metric.name!r})"
                )
        if self.export is not None and self.export.explainers:
            raise ValueError(
                f"export.explainers: explain the score of a class, and {self.loss.name} trains "
                "embeddings, which have none; leave them out here, and export from Python with "
                "explainers that have a `score`"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _combinations(self):
        """What each key allows by itself but the others rule out."""
        strategy = self.distribution.strategy
        if strategy == "parameter_server":
            raise ValueError(
                "distribution.strategy: 'parameter_server' is not offered: its asynchronous "
                "updates could neither be repeated nor resumed exactly; use 'multi_worker'"
            )
        if self.distribution.tpu is not None and strategy != "tpu":
            raise ValueError("distribution.tpu: is for distribution.strategy 'tpu'")
        if self.data.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate: {self.accumulate} does not divide data.batch_size "
                f"{self.data.batch_size}, the examples of one optimizer step"
            )
        if self.schedule is not None and "learning_rate" in self.optimizer.arguments:
            raise ValueError(
                "schedule: gives the learning rate, and so does optimizer.learning_rate; "
                "leave one out"
            )
        if self.is_self_labelled and self.data.validation_split is not None:
            raise ValueError(
                f"data.validation_split: must be null with method {self.method.name}, whose model "
                "does not know the labels of the data"
            )
        if self.jit_compile and strategy in ("mirrored", "multi_worker") and not _has_gpu():
            raise ValueError("jit_compile: does not work with several replicas on CPUs")
        return self


def _has_gpu():
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def load_recipe(path, overrides=()):
    """Reads and checks a recipe.

    Args:
        path: a YAML file.
        overrides: strings `key.sub=value`, the value in YAML: "epochs=3",
            "optimizer.AdEMAMix.learning_rate=0.01", "method={SAM: {rho: 0.1}}".

    Raises:
        RecipeError: one message with every complaint: unknown keys (with the nearest known),
            wrong types, impossible combinations.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise RecipeError(f"There is no recipe {path}.{hint}")
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must be a mapping of keys. Received: {type(values).__name__}")
    for override in overrides:
        _override(values, override)
    return check_recipe(values, str(path))


def check_recipe(values, source="recipe"):
    """Returns the `Recipe` of a dict of values; raises a RecipeError that names `source`."""
    try:
        return Recipe.model_validate(values)
    except pydantic.ValidationError as error:
        lines = [_complaint(each) for each in error.errors()]
        raise RecipeError("\n".join([f"{source} cannot be run:", *lines])) from error


def _override(values, override):
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"An override is written key.sub=value. Received: {override!r}")
    *path, last = key.split(".")
    place = values
    for name in path:
        if isinstance(place.get(name), str):
            # A part that was named without arguments gets its first one.
            place[name] = {place[name]: {}}
        place = place.setdefault(name, {})
        if place is None or not isinstance(place, dict):
            raise RecipeError(f"{key}: {name!r} is not a section of the recipe")
    place[last] = yaml.safe_load(text)


def _complaint(error):
    """One line for one of pydantic's errors."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        near = difflib.get_close_matches(location[-1], known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"  {key}: is not a key of a recipe; {hint}"
    if error["type"] == "missing":
        return f"  {key}: is missing"
    message = error["msg"].removeprefix("Value error, ")
    received = "" if not key else f" (received: {error['input']!r})"
    return f"  {key}: {message}{received}" if key else f"  {message}"


def _keys_at(location):
    """The keys of the section at a location."""
    section = Recipe
    for name in location:
        annotation = section.model_fields[name].annotation if name in section.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(
            (o for o in options if isinstance(o, type) and issubclass(o, pydantic.BaseModel)),
            section,
        )
    return list(section.model_fields)


def to_yaml(recipe):
    """The recipe with all its defaults, as YAML text that `load_recipe` reads again."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
