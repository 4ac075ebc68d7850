"""What every explainer shares: scores, gradients of them, and sums over many points."""

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.graph import find_layer, input_structure, linear_output, on_output, replace_call
from kzoo.explain.scores import class_score

_TOP = -1
# Numbers in the inputs of one chunk. A deep network's gradients take some kB for each of them.
_AUTO_SIZE = 2**20
_TARGET_SPEC = tf.TensorSpec([None], tf.int32, "target")


class Explainer:
    """Base of the explainers: `explainer(inputs, target)` says why the model scores the target.

    A subclass implements `attribute`. Everything runs inside one `tf.function` with an open batch
    dimension, without Python over images, so each explainer can be a SavedModel signature; its
    hyper-parameters are fixed when it is made.

    Args:
        model: a Keras model of any build: functional, Sequential, subclassed, nested, with one
            input or a list or dict of them; it is called with `training=False`. Methods that look
            at inputs and outputs only take any function of tensors.
        score: `score(outputs, target) -> (scores [batch], target [batch])`, what is explained.
            Defaults to the logit of the target class; the softmax or sigmoid at the end of the
            model is left out. A function of your own sees the outputs without it, too.
        tap: name of a layer (or the layer). Attributions are then with respect to its output
            instead of the model's input. Needed for integer inputs: name the embedding layer.
        rows: how many inputs are sent through the model at once by methods that need many; bounds
            the memory. None for all at once, without a loop. Defaults to "auto": 80, and fewer
            where inputs are larger than about 64 x 64 pixels (6 for 224 x 224).
    """

    # Methods that never ask for the gradient of the inputs take integer inputs as well.
    differentiates_inputs = True

    def __init__(self, model, score=None, tap=None, rows="auto"):
        if not callable(model):
            raise TypeError(f"`model` must be a Keras model. Received: {type(model).__name__}")
        if rows not in (None, "auto") and (not isinstance(rows, int) or rows < 1):
            raise ValueError(
                f'`rows` must be a positive integer, "auto" or None. Received: {rows!r}'
            )
        self.model = model
        self.score = score or class_score
        self.tap = None if tap is None else find_layer(model, tap)
        self.rows = rows
        self._row_size = _size_per_row(input_structure(model))
        self._function = None

    def attribute(self, values, target, inputs):
        """Attributes the scores to `values`; to be implemented by a method.

        Args:
            values: what is attributed: the inputs, or the output of the tapped layer.
            target: int32 [batch], -1 for the model's own top class.
            inputs: the model's inputs.

        A method with `request_specs` takes those as further arguments.

        Returns:
            dict with `attributions` (the structure and shape of `values`, or a map), what `scores`
            gives for `values`, and `convergence_delta` [batch] where the method has one.
        """
        raise NotImplementedError

    def request_specs(self, spec):
        """What a request brings besides inputs and target: {name: `tf.TensorSpec`}, batch first.

        Args:
            spec: structure of the `tf.TensorSpec`s of the model's inputs.
        """
        return {}

    def __call__(self, inputs, target=None, **request):
        """Explains a batch.

        Args:
            inputs: the model's inputs, batch first; arrays or tensors.
            target: class indices, int [batch] or one int for all; -1 stands for the model's top
                class, -2 for its second, and so on. None for the top class.
            request: what `request_specs` names, with the batch first or one value for all.

        Returns:
            dict of tensors: what `attribute` returns, in at least float32. Its `predictions` are
            the model's outputs without the final softmax or sigmoid.

        Raises:
            ValueError: for inputs of another shape or kind than the model's, NaN in them, or a
                target that is no class.
        """
        inputs = self._convert(inputs)
        batch = keras.tree.flatten(inputs)[0].shape[0]
        spec = self.input_spec(inputs)
        request = {"target": _TOP if target is None else target, **request}
        specs = {"target": _TARGET_SPEC, **self.request_specs(spec)}
        if request.keys() != specs.keys():
            raise ValueError(
                f"A request must bring {', '.join(specs)}. Received: {', '.join(request)}"
            )
        values = [_per_row(name, request[name], specs[name], batch) for name in specs]
        # Not the tf.function itself, which would warn of retracing where many explainers are made.
        explain = self.function(spec).get_concrete_function()
        try:
            return explain(inputs, *values)
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(_reason(error)) from error

    def function(self, spec):
        """The explainer as a `tf.function` of (inputs, target, what `request_specs` names), traced
        once for all batches."""
        if self._function is None:
            extra = self.request_specs(spec)

            def explain(inputs, target, *request):
                return self.explain(inputs, target, **dict(zip(extra, request, strict=True)))

            self._function = tf.function(
                explain, input_signature=[spec, _TARGET_SPEC, *extra.values()], autograph=False
            )
        return self._function

    def input_spec(self, inputs=None):
        """`tf.TensorSpec`s of the model's inputs with an open batch; of a subclassed model's
        from the shapes of `inputs`."""
        known = input_structure(self.model)
        known = inputs if known is None else known
        if known is None:
            raise ValueError("`inputs` are needed to know the shapes of a subclassed model.")
        return keras.tree.map_structure(
            lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), known
        )

    def _convert(self, inputs):
        known = input_structure(self.model)
        if known is None:
            return keras.tree.map_structure(tf.convert_to_tensor, inputs)
        try:
            keras.tree.assert_same_structure(known, inputs)
        except ValueError as error:
            raise ValueError(f"`inputs` must have the structure of the model's. {error}") from error
        return keras.tree.map_structure(_convert, known, inputs)

    def explain(self, inputs, target, **request):
        """As `__call__`, inside a graph: `target` is int32 [batch], negative for ranks."""
        inputs = keras.tree.map_structure(_check_numbers, inputs)
        values = inputs if self.tap is None else self._tapped(inputs)
        for value in keras.tree.flatten(values):
            if self.differentiates_inputs and not value.dtype.is_floating:
                raise ValueError(
                    f"There is no gradient with respect to an input of dtype {value.dtype.name}. "
                    "Pass `tap`, the name of the embedding layer, to attribute to its output."
                )
        self._row_size = max(_size_per_row(inputs), _size_per_row(values))
        result = self.attribute(values, target, inputs, **request)
        return keras.tree.map_structure(_widen, result)

    def _tapped(self, inputs):
        seen = []
        with replace_call(self.tap, on_output(lambda output: seen.append(output) or output)):
            self.predict(inputs)
        # The last call counts: a model that is built by its first call runs the layer twice.
        return _widen(seen[-1])

    def predict(self, inputs):
        """The model's outputs, as when it is served."""
        if isinstance(self.model, keras.Layer):
            return self.model(inputs, training=False)
        return self.model(inputs)

    def scores(self, values, target, inputs):
        """What the model says of `values`.

        Returns:
            dict with `score` [batch], at least float32; `target` int32 [batch], resolved; and
            `predictions`, the model's outputs.
        """
        with linear_output(self.model):
            if self.tap is None:
                outputs = self.predict(values)
            else:
                substitute = on_output(lambda output: tf.cast(values, output.dtype))
                with replace_call(self.tap, substitute):
                    outputs = self.predict(inputs)
        score, target = self.score(outputs, target)
        return {"score": _widen(score), "target": target, "predictions": outputs}

    def gradients(self, values, target, inputs):
        """Returns the gradients of the scores with respect to `values`, and what `scores` does."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            scored = self.scores(values, target, inputs)
        gradients = keras.tree.flatten(tape.gradient(scored["score"], values))
        if all(gradient is None for gradient in gradients):
            raise ValueError(
                f"The score of {self.model.name!r} has no gradient with respect to "
                f"{'its inputs' if self.tap is None else f'the output of {self.tap.name!r}'}: "
                "nothing on the way can be differentiated, or nothing leads there. Use a method "
                "that asks for predictions only, such as occlusion."
            )
        gradients = [
            tf.zeros_like(value) if gradient is None else gradient
            for gradient, value in zip(gradients, keras.tree.flatten(values), strict=True)
        ]
        return keras.tree.pack_sequence_as(values, gradients), scored

    def activation_gradients(self, layer, values, target, inputs):
        """The output of `layer` and the gradients of the scores with respect to it.

        One forward pass, and the backward pass only down to the layer.

        Args:
            layer: layer or operation of the model; if it is called more than once, the last counts.

        Returns:
            (activations, gradients, what `scores` returns), the first two in at least float32.
        """
        seen = []

        def record(output):
            tape.watch(output)
            seen.append(output)
            return output

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            with replace_call(layer, on_output(record)):
                scored = self.scores(values, target, inputs)
        gradients = tape.gradient(scored["score"], seen[-1]) if seen else None
        if gradients is None:
            raise ValueError(
                f"The score does not depend on the output of the layer {layer.name!r} of "
                f"{self.model.name!r}."
            )
        return _widen(seen[-1]), _widen(gradients), scored

    def weighted_sum(self, function, points, weights, target, inputs):
        """sum_s weights[s] function(points[s]), in calls of about `rows` rows.

        Args:
            function: `function(values, target, inputs)` of [n, ...] rows returns a structure of
                [n, ...] tensors.
            points: `points(steps)`: int32 [k] numbers of steps -> values of shape [k, batch, ...].
            weights: float tensor [steps], or [steps, batch] where they differ from row to row.
            target: int32 [batch].
            inputs: the model's inputs, repeated for every step.

        Returns:
            structure of tensors [batch, ...].
        """

        def evaluate(step):
            weight = tf.gather(weights, step)
            values = function(
                keras.tree.map_structure(merge_steps, points(step)),
                tf.tile(target, tf.shape(step)),
                keras.tree.map_structure(lambda x: tile_steps(x, tf.size(step)), inputs),
            )
            return keras.tree.map_structure(lambda x: _contract(weight, x), values)

        steps = weights.shape[0] or tf.shape(weights)[0]
        return self.sum_over_steps(evaluate, steps, tf.shape(target)[0])

    def sum_over_steps(self, evaluate, steps, batch):
        """The sum of `evaluate` over all steps, a chunk of about `rows` rows at a time.

        The memory is bounded by `rows`, whatever the number of steps.

        Args:
            evaluate: `evaluate(step)` of the numbers of some steps, int32 [k], returns a structure
                of tensors that are sums over those steps.
            steps: number of steps, at least 1; an int or an int32 scalar.
            batch: number of rows that a step sends through the model.
        """
        if self.rows is None:
            return evaluate(tf.range(steps))
        rows = min(80, max(1, _AUTO_SIZE // self._row_size)) if self.rows == "auto" else self.rows
        groups = tf.cast(tf.math.ceil(steps * batch / rows), tf.int32)
        groups = tf.clip_by_value(groups, 1, steps)
        size = (steps + groups - 1) // groups
        # What is left over goes first: nothing is evaluated twice to fill up a chunk.
        first = 1 + (steps - 1) % size

        def body(begin, total):
            chunk = evaluate(begin + tf.range(size))
            return begin + size, keras.tree.map_structure(tf.add, total, chunk)

        _, total = tf.while_loop(
            lambda begin, total: begin < steps,
            body,
            (first, evaluate(tf.range(first))),
            maximum_iterations=steps - 1,
        )
        return total


def _size_per_row(structure):
    """How many numbers one row of some inputs has; unknown sizes count as large."""
    sizes = [np.prod([n or 512 for n in x.shape[1:]]) for x in keras.tree.flatten(structure)
             if x is not None]  # fmt: skip
    return int(sum(sizes)) or _AUTO_SIZE


def merge_steps(x):
    """[steps, batch, ...] -> [steps * batch, ...]"""
    return tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0))


def split_steps(x, steps):
    """[steps * batch, ...] -> [steps, batch, ...]"""
    shape = tf.shape(x)
    return tf.reshape(x, tf.concat([[steps, shape[0] // steps], shape[1:]], 0))


def tile_steps(x, steps):
    """[batch, ...] -> [steps * batch, ...]"""
    return tf.tile(x, [steps] + [1] * (x.shape.rank - 1))


def _contract(weight, x):
    """Sum over the steps of weight [steps] or [steps, batch] times x [steps * batch, ...]."""
    x = split_steps(x, tf.shape(weight)[0])
    weight = tf.cast(weight, x.dtype)
    if weight.shape.rank == 1:
        return tf.tensordot(weight, x, 1)
    return tf.einsum("sb,sb...->b...", weight, x)


def _widen(x):
    """Half precision to float32; anything else as it is."""
    return tf.cast(x, tf.float32) if x.dtype in (tf.bfloat16, tf.float16) else x


def _reason(error):
    """What a failed check in the graph says, without the places it came through."""
    said = error.message.split("\n\t [[")[0].splitlines()[-1]
    return said.removeprefix("assertion failed: ")


def _check_numbers(x):
    return tf.debugging.check_numerics(x, "`inputs` must be finite") if x.dtype.is_floating else x


def _convert(known, x):
    """An input as a tensor of the dtype of the model's."""
    x = x if tf.is_tensor(x) else np.asarray(x)
    shape = tf.TensorShape(known.shape)
    if not shape.is_compatible_with(x.shape):
        raise ValueError(f"`inputs` must have the shape {shape}. Received: {tuple(x.shape)}")
    if known.dtype != "string" and tf.as_dtype(x.dtype) == tf.string:
        raise ValueError(f"`inputs` must be of dtype {known.dtype}. Received: {x.dtype}")
    return tf.cast(x, known.dtype)


def _per_row(name, value, spec, batch):
    """A tensor [batch, ...] from a value for each row, or one for all."""
    value, dtype = np.asarray(value), spec.dtype.as_numpy_dtype
    if not np.can_cast(value.dtype, dtype, "same_kind"):
        raise ValueError(f"`{name}` must be of dtype {spec.dtype.name}. Received: {value.dtype}")
    if value.ndim == spec.shape.rank - 1:
        value = np.broadcast_to(value, [batch, *value.shape])
    if not tf.TensorShape([batch, *spec.shape[1:]]).is_compatible_with(value.shape):
        one, rows = list(spec.shape[1:]), [batch, *spec.shape[1:]]
        raise ValueError(
            f"`{name}` must have the shape {rows}, one for each row of the inputs, or {one}. "
            f"Received: {list(value.shape)}"
        )
    return tf.constant(value, spec.dtype)
