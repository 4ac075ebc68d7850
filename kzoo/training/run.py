"""Runs a recipe: from its names to a trained model and a folder that tells how it went."""

import json
import pathlib
import platform
import sys

import keras
import numpy as np
import tensorflow as tf

import kzoo
from kzoo import plots
from kzoo.callbacks import MetricsLog, Progress
from kzoo.data import Pipeline, load
from kzoo.training.assemble import assemble
from kzoo.training.checkpoint import Checkpoints
from kzoo.training.distribution import is_chief, make_strategy
from kzoo.training.loop import Loop
from kzoo.training.method import TrainingMethod
from kzoo.training.parts import find, left_out, make, regularize
from kzoo.training.recipe import RecipeError, to_yaml


class Run:
    """A recipe made ready: data read, model built and compiled, nothing trained yet.

    Args:
        recipe: `kzoo.training.recipe.Recipe`.
        folder: where the run writes; None writes nothing.
        resume: whether to go on from the newest checkpoint in the folder.

    Attributes:
        model: the model that is trained, wrapped in the method where the recipe names one.
        source: the `kzoo.data.Source` trained on.
        loop: the `Loop`.

    Raises:
        RecipeError: for what only becomes known here: unknown parts and arguments, data that does
            not fit the model, a folder that holds another run.
    """

    def __init__(self, recipe, folder=None, resume=False):
        check_parts(recipe)
        self.recipe = recipe
        self.folder = None if folder is None else pathlib.Path(folder)
        self.resume = resume
        self._refuse_to_overwrite()
        keras.utils.set_random_seed(recipe.seed)
        if recipe.deterministic:
            tf.config.experimental.enable_op_determinism()
        if recipe.precision == "float64":
            keras.config.set_floatx("float64")
        keras.config.set_dtype_policy(recipe.precision)
        self.strategy = make_strategy(recipe.distribution.strategy, recipe.distribution.tpu)
        self.source, self.train_data, self.validation_data = _read_data(recipe)
        with self.strategy.scope():
            self.model = self._compile()
        self.loop = Loop(
            self.model,
            self.train_data,
            epochs=recipe.epochs,
            validation_data=self.validation_data,
            callbacks=self._callbacks(),
            strategy=self.strategy,
            accumulate=recipe.accumulate,
            jit_compile=recipe.jit_compile,
            steps_per_call=recipe.steps_per_call,
            checkpoints=self.folder
            and Checkpoints(self.folder / "checkpoints", recipe.checkpoints.keep),
            checkpoint_every=recipe.checkpoints.every,
            on_nonfinite=recipe.on_nonfinite,
        )

    @property
    def total_steps(self):
        """Optimizer steps of the whole run."""
        batches = self.train_data.steps_per_epoch
        return self.recipe.epochs * -(-batches // self.recipe.accumulate)

    @property
    def is_chief(self):
        """Whether this process writes the files of the run."""
        return is_chief(self.strategy)

    @property
    def class_names(self):
        """Names of the model's outputs; empty where they have none, as embeddings."""
        return self.source.class_names if self.recipe.gives_classes else ()

    @property
    def served_model(self):
        """What is exported: the model without its method, embeddings under that name.

        A lone unnamed output would be served as the logits of classes.
        """
        model = self.model.model if isinstance(self.model, TrainingMethod) else self.model
        if not self.recipe.gives_embeddings:
            return model
        return keras.Model(model.input, {"embeddings": model.output}, name=model.name)

    def train(self):
        """Trains to the end, or until SIGTERM; returns the last row of the metrics."""
        chief = self.folder is not None and self.is_chief
        if chief:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "recipe.yaml").write_text(to_yaml(self.recipe), "utf-8")
            (self.folder / "environment.json").write_text(json.dumps(environment(), indent=2))
        history = self.loop.run(self.resume).history
        if chief:
            self._draw_curves()
        return {name: values[-1] for name, values in history.items()}

    def _compile(self):
        recipe = self.recipe
        model = assemble(recipe, self.source)
        width = keras.tree.flatten(model.outputs)[0].shape[-1]
        regularize(model, recipe.regularizers)
        if recipe.method is not None:
            model = make("method", recipe.method, "method", model=model)
        rate = {}
        if recipe.schedule is not None:
            rate = {"learning_rate": make("schedule", self._timed(recipe.schedule), "schedule")}
        model.compile(
            make("optimizer", self._timed(recipe.optimizer), "optimizer", **rate),
            make("loss", recipe.loss, "loss"),
            metrics=[
                self._make_metric(metric, f"metrics.{number}", width)
                for number, metric in enumerate(recipe.metrics)
            ],
        )
        return model

    def _make_metric(self, part, key, width):
        """A metric; one of embeddings is made as large as they and the data are."""
        data = (self.train_data, self.validation_data)
        capacity = max(each.source.num_examples for each in data if each is not None)
        fitting = left_out("metric", part, key, dim=width, capacity=capacity)
        return make("metric", part, key, **fitting)

    def _timed(self, part):
        """The part, with each argument "total" replaced by the number of steps of the run."""
        arguments = {
            name: self.total_steps if value == "total" else value
            for name, value in part.arguments.items()
        }
        return part.model_copy(update={"arguments": arguments})

    def _callbacks(self):
        callbacks = [
            make("callback", part, f"callbacks.{number}")
            for number, part in enumerate(self.recipe.callbacks)
        ]
        if not self.is_chief:
            return callbacks
        callbacks.append(Progress())
        if self.folder is not None:
            callbacks.append(MetricsLog(self.folder / "metrics.jsonl", append=self.resume))
            if self.recipe.tensorboard:
                callbacks.append(keras.callbacks.TensorBoard(self.folder / "tensorboard"))
        return callbacks

    def _draw_curves(self):
        rows = MetricsLog.read(self.folder / "metrics.jsonl")
        if rows:
            figure = plots.curves(_panels(rows), [row["epoch"] for row in rows], "epoch")
            figure.savefig(self.folder / "curves.png", dpi=120)

    def _refuse_to_overwrite(self):
        if self.folder is None or self.resume:
            return
        if Checkpoints(self.folder / "checkpoints").files():
            raise RecipeError(
                f"{self.folder} holds a run already. Pass --resume to go on with it, or another "
                "--run-dir."
            )


def check_parts(recipe):
    """Looks up every part that a recipe names, before anything heavy starts.

    Raises:
        RecipeError: for an unknown name or argument, with the nearest known one.
    """
    single = {
        "model": recipe.model, "method": recipe.method, "optimizer": recipe.optimizer,
        "schedule": recipe.schedule, "loss": recipe.loss,
    }  # fmt: skip
    for kind, part in single.items():
        if part is not None:
            find(kind, part, kind)
    several = {
        "metric": ("metrics", recipe.metrics),
        "callback": ("callbacks", recipe.callbacks),
        "augmentation": ("data.augment", recipe.data.augment),
        "explainer": ("export.explainers", recipe.export.explainers if recipe.export else ()),
    }
    for kind, (key, parts) in several.items():
        for number, part in enumerate(parts):
            find(kind, part, f"{key}.{number}")
    for key in ("stem", "head"):
        for number, part in enumerate(getattr(recipe, key)):
            find("layer", part, f"{key}.{number}")
    for key in ("kernel", "logits"):
        part = getattr(recipe.regularizers, key)
        if part is not None:
            find("regularizer", part, f"regularizers.{key}")


def _panels(rows):
    """{metric: {"train": values, "validation": values}} from the rows of a metrics log."""
    panels = {}
    for name in rows[-1].keys() - {"epoch", "step", "seconds"}:
        metric = name.removeprefix("val_")
        line = "train" if metric == name else "validation"
        panels.setdefault(metric, {})[line] = [row[name] for row in rows]
    return dict(sorted(panels.items(), reverse=True))


def environment():
    """What the run ran on: versions, devices, the command."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "kzoo": kzoo.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "devices": [device.name for device in tf.config.list_logical_devices()],
    }


def _read_data(recipe):
    """(train source, train pipeline, validation pipeline or None)"""
    data = recipe.data
    augment = [
        make("augmentation", part, f"data.augment.{number}")
        for number, part in enumerate(data.augment)
    ]
    try:
        train = load(data.name, data.train_split, data_dir=data.data_dir, **data.options)
        pipeline = Pipeline(
            train,
            data.batch_size // recipe.accumulate,
            shuffle=data.shuffle,
            seed=recipe.seed,
            augment=augment,
            preprocess=data.preprocess,
            drop_remainder=data.drop_remainder,
            cache=data.cache,
        )
        if data.validation_split is None:
            return train, pipeline, None
        held_out = load(data.name, data.validation_split, data_dir=data.data_dir, **data.options)
        validation = Pipeline(
            held_out, data.batch_size, shuffle=False, preprocess=pipeline.preprocess or "none"
        )
    except (TypeError, ValueError, OSError) as error:
        raise RecipeError(f"data: {error}") from error
    return train, pipeline, validation
