"""Explainers that are made of another one: how that is given and kept."""

import inspect

import keras

from kzoo.explain.explainer import Explainer
from kzoo.explain.saliency import Saliency


def make_base(model, base, score=None, tap=None):
    """Returns the explainer that a method is made of.

    Args:
        model: the model explained.
        base: None for the signed gradient, a class (made with `score` and `tap`), an instance for
            the same model, or {"class_name", "config"} as of `base_config`.
        score, tap: see `Explainer`.

    Raises:
        TypeError: for anything else.
        ValueError: for an instance with `score` or `tap`, or an instance for another model.
    """
    given = {name: x for name, x in (("score", score), ("tap", tap)) if x is not None}
    if base is None:
        return Saliency(model, absolute=False, **given)
    if isinstance(base, dict):
        make = keras.saving.get_registered_object(base["class_name"])
        return make(model, **base["config"], **given)
    if inspect.isclass(base) and issubclass(base, Explainer):
        return base(model, **given)
    if not isinstance(base, Explainer):
        raise TypeError(
            f"`base` must be None, an explainer, its class or its configuration. Received: {base!r}"
        )
    if base.model is not model:
        raise ValueError(
            f"`base` must explain the same model, {model.name!r}. Received one that explains "
            f"{base.model.name!r}."
        )
    if given:
        raise ValueError(
            f"`base` is an instance, which has its own {', '.join(given)}: pass them to it."
        )
    return base


def base_config(base):
    """{"class_name", "config"}, from which `make_base` makes the same explainer."""
    return {
        "class_name": keras.saving.get_registered_name(type(base)),
        "config": base.get_config(),
    }
