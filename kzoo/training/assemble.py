"""From a recipe's stem, model and head to one model that fits the data."""

import keras

from kzoo.training.parts import left_out, make
from kzoo.training.recipe import EMBEDDING_LOSSES, RecipeError


def assemble(recipe, source):
    """Builds the model of a recipe: its stem, model and head, for the data that it is trained on.

    Args:
        recipe: `kzoo.training.recipe.Recipe`.
        source: `kzoo.data.Source`, whose shape and number of classes the parts get for their
            `input_shape` and `classes` where the recipe does not say.

    Returns:
        A `keras.Model`; with a stem or a head, one flat graph of all layers.

    Raises:
        RecipeError: for parts that do not go together, or do not fit the data.
    """
    classes = len(source.class_names) or None
    offered = {"classes": classes}
    if recipe.stem and isinstance(source.features, dict):
        raise RecipeError(f"stem: begins with one input; {source.name} has {len(source.features)}")
    if recipe.stem:
        inputs = keras.Input(source.input_spec.shape, name="images")
        offered["input_tensor"] = _apply("stem", recipe.stem, inputs)
    elif not isinstance(source.features, dict):
        offered["input_shape"] = tuple(source.input_spec.shape)
    fitting = left_out("model", recipe.model, "model", **offered)
    if recipe.stem and "input_tensor" not in fitting:
        raise RecipeError(f"stem: {recipe.model.name} takes no `input_tensor` to begin with")
    model = make("model", recipe.model, "model", **fitting)
    if recipe.head:
        model = _add_head(model, recipe.head, classes)
    if classes and recipe.gives_classes:
        _check_fits(model, source, recipe)
    return model


def _add_head(model, head, classes):
    """One flat model of a functional model and the layers behind it."""
    outputs = keras.tree.flatten(getattr(model, "outputs", ()))
    if len(outputs) != 1:
        raise RecipeError("head: goes behind a functional model of one output")
    *body, final = head
    x = _apply("head", body, outputs[0], classes=classes)
    # Outputs and losses stay in full precision under a mixed policy.
    full = keras.backend.result_type(x.dtype, "float32")
    x = _apply("head", [final], x, len(body), classes=classes, dtype=full)
    return keras.Model(model.input, x, name=model.name)


def _apply(key, parts, x, first=0, **offered):
    """What layers make of `x`, one behind the other."""
    for number, part in enumerate(parts, first):
        place = f"{key}.{number}"
        layer = make("layer", part, place, **left_out("layer", part, place, **offered))
        try:
            x = layer(x)
        except ValueError as error:
            raise RecipeError(f"{place}.{part.name}: {error}") from error
    return x


def _check_fits(model, source, recipe):
    outputs = keras.tree.flatten(model.outputs)
    classes = len(source.class_names)
    if len(outputs) == 1 and outputs[0].shape[-1] not in (1, classes):
        raise RecipeError(
            f"model: gives {outputs[0].shape[-1]} outputs, but {source.name} has {classes} "
            f"classes; its arguments were {recipe.model.arguments}. Outputs that are no classes "
            f"need a loss on embeddings: {', '.join(EMBEDDING_LOSSES)}"
        )
