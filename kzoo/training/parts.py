"""From the names in a recipe to kzoo's and Keras's parts."""

import difflib
import importlib
import inspect

import keras

from kzoo.training.recipe import RecipeError

# Where the names of a kind are looked up, kzoo's before Keras's.
_SOURCES = {
    "model": ("kzoo.models", "keras.applications"),
    "layer": ("kzoo.layers", "keras.layers"),
    "method": ("kzoo.training",),
    "optimizer": ("kzoo.optimizers", "keras.optimizers"),
    "schedule": ("kzoo.optimizers.schedules", "keras.optimizers.schedules"),
    "loss": ("kzoo.losses", "keras.losses"),
    "metric": ("kzoo.metrics", "keras.metrics"),
    "regularizer": ("kzoo.regularizers", "keras.regularizers"),
    "callback": ("kzoo.callbacks", "keras.callbacks"),
    "augmentation": ("kzoo.data", "keras.layers"),
    "explainer": ("kzoo.explain",),
}
_BASES = {
    "layer": "keras.layers.Layer",
    "method": "kzoo.training.TrainingMethod",
    "optimizer": "keras.optimizers.Optimizer",
    "schedule": "keras.optimizers.schedules.LearningRateSchedule",
    "loss": "keras.losses.Loss",
    "metric": "keras.metrics.Metric",
    "regularizer": "keras.regularizers.Regularizer",
    "callback": "keras.callbacks.Callback",
    "explainer": "kzoo.explain.Explainer",
}


def names(kind):
    """{name: class or constructor} of all parts of a kind that a recipe may name."""
    found = {}
    base = _attribute(_BASES[kind]) if kind in _BASES else None
    for module in reversed(_SOURCES[kind]):
        module = importlib.import_module(module)
        for name in getattr(module, "__all__", None) or dir(module):
            value = getattr(module, name)
            if name.startswith("_") or not callable(value):
                continue
            if base is None or (isinstance(value, type) and issubclass(value, base)):
                found[name] = value
    return found


def find(kind, part, key):
    """Returns the class or constructor that a recipe's part names, its arguments checked.

    Args:
        kind: "model", "optimizer", ...
        part: `kzoo.training.recipe.Part`.
        key: where it stands in the recipe, for the message.

    Raises:
        RecipeError: for an unknown name or argument, with the nearest known one.
    """
    known = names(kind)
    if part.name not in known:
        raise RecipeError(f"{key}: {_unknown(part.name, known, f'a known {kind}')}")
    target = known[part.name]
    allowed = arguments_of(target)
    for name in part.arguments:
        if name not in allowed:
            complaint = _unknown(name, allowed, f"an argument of {part.name}")
            raise RecipeError(f"{key}.{part.name}.{name}: {complaint}")
    return target


def make(kind, part, key, **more):
    """Builds a part of a recipe.

    Args:
        more: arguments that the recipe does not give, such as the model of a method.

    Raises:
        RecipeError: where `find` raises it, or the constructor refuses the arguments.
    """
    target = find(kind, part, key)
    try:
        return target(**{**part.arguments, **more})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{key}.{part.name}: {error}") from error


def left_out(kind, part, key, **offered):
    """{argument: value} of what is offered that the part takes and the recipe does not say.

    Args:
        offered: arguments that follow from the data or the model; None for one that does not.
    """
    known = arguments_of(find(kind, part, key))
    return {
        name: value
        for name, value in offered.items()
        if value is not None and name in known and name not in part.arguments
    }


def arguments_of(target):
    """The names of the arguments that a class or function takes, through its **kwargs as well."""
    functions = [target]
    if isinstance(target, type):
        functions = [cls.__init__ for cls in target.__mro__ if "__init__" in vars(cls)]
    found = {}
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        found |= {
            p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    found.pop("self", None)
    return found


def _unknown(name, known, what):
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
    return f"{name!r} is not {what}; {hint}"


def _attribute(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def regularize(model, regularizers):
    """Puts a recipe's regularizers on the kernels and the logits of a built model, in place."""
    if regularizers.kernel is not None:
        penalty = make("regularizer", regularizers.kernel, "regularizers.kernel")
        for layer in model._flatten_layers():
            kernel = getattr(layer, "kernel", None)
            if isinstance(kernel, keras.Variable):
                layer.kernel_regularizer = kernel.regularizer = penalty
    if regularizers.logits is not None:
        final = model.layers[-1]
        activation = getattr(final, "activation", keras.activations.linear)
        if activation is not keras.activations.linear:
            raise RecipeError(
                f"regularizers.logits: the last layer, {final.name!r}, gives "
                f"{activation.__name__}, not logits; set model's classifier_activation to null"
            )
        final.activity_regularizer = make("regularizer", regularizers.logits, "regularizers.logits")
