"""Adversarial training: descend at the worst inputs within a small distance of the data.

    min_w E[ max_{||d|| <= epsilon} L(w, x + d, y) ]                        (equation 2.1)
    x <- Project(x + step_size * direction(grad_x L(w, x, y)))              (PGD, section 2.1)

with direction = sign(g) for l-infinity and g / ||g||_2 for l2.

"Towards Deep Learning Models Resistant to Adversarial Attacks", Madry, Makelov, Schmidt, Tsipras,
Vladu, 2017, arXiv 1706.06083.

Open choices: the attack sees the model as it predicts (dropout off, batch normalization with its
moving statistics), and only the step on the weights trains them; the random start is uniform in the
ball; step_size defaults to 2.5 epsilon / steps, so that the attack can cross the ball.
"""

import keras
import tensorflow as tf

from kzoo.ops.distribute import num_replicas
from kzoo.papers import Example, Paper, component
from kzoo.training.method import TrainingMethod

PAPER = Paper(
    title="Towards Deep Learning Models Resistant to Adversarial Attacks",
    authors=(
        "Aleksander Madry",
        "Aleksandar Makelov",
        "Ludwig Schmidt",
        "Dimitris Tsipras",
        "Adrian Vladu",
    ),
    year=2017,
    arxiv="1706.06083",
)

_NORMS = ("l2", "linf")


def _example():
    layers = [keras.Input([6]), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    return {"model": keras.Sequential(layers), "epsilon": 0.05, "steps": 2}


@component(PAPER, example=Example(kwargs=_example))
class AdversarialTraining(TrainingMethod):
    """Trains a model on inputs that projected gradient descent has made hard for it.

    The metrics while training are those at the attacked inputs; `evaluate` sees the data as they
    are, and `attack` gives the inputs for a robust accuracy.

    Args:
        model: the `keras.Model` to train; it has one floating input.
        epsilon: radius of the ball, at least 0, in the units of the inputs.
        norm: "linf" or "l2", over all values of an input. Defaults to "linf".
        steps: steps of the attack. Defaults to 7.
        step_size: length of a step in the norm. None for 2.5 epsilon / steps.
        random_start: whether the attack begins at a random point of the ball, which depends on
            `seed` and on the step of the optimizer alone. Defaults to True.
        bounds: (low, high), the range of valid inputs, to which attacked ones are clipped. None
            for any.
        seed: seed of the random starts. Defaults to 0.

    Example:

    >>> trainer = AdversarialTraining(model, epsilon=8 / 255, bounds=(0, 1))
    >>> trainer.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = trainer.fit(x, y)
    >>> robust = model(trainer.attack(x_test, y_test))

    Reference:
        Madry et al. (2017), equation 2.1, arxiv.org/abs/1706.06083
    """

    def __init__(
        self,
        model,
        epsilon,
        norm="linf",
        steps=7,
        step_size=None,
        random_start=True,
        bounds=None,
        seed=0,
        **kwargs,
    ):
        for name, value in (("epsilon", epsilon), ("step_size", step_size or 0)):
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"`{name}` must be a number of at least 0. Received: {value!r}")
        if norm not in _NORMS:
            raise ValueError(f"`norm` must be one of {', '.join(_NORMS)}. Received: {norm!r}")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"`steps` must be a positive integer. Received: {steps!r}")
        if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
            raise ValueError(f"`bounds` must be (low, high), low < high. Received: {bounds!r}")
        super().__init__(model, **kwargs)
        self.epsilon = epsilon
        self.norm = norm
        self.steps = steps
        self.step_size = 2.5 * epsilon / steps if step_size is None else step_size
        self.random_start = random_start
        self.bounds = None if bounds is None else tuple(bounds)
        self.seed = seed

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        attacked = self.attack(x, y, sample_weight)
        weights = self.trainable_variables
        with tf.GradientTape() as tape:
            # Keras's own step would not say `training`, which `call` hides in its **kwargs.
            outputs = self(attacked, training=True)
            loss = self.compute_loss(
                x=attacked, y=y, y_pred=outputs, sample_weight=sample_weight, training=True
            )
            scaled = self.optimizer.scale_loss(loss)
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        self._loss_tracker.update_state(loss * num_replicas(), sample_weight=tf.shape(attacked)[0])
        return self.compute_metrics(attacked, y, outputs, sample_weight=sample_weight)

    def attack(self, x, y, sample_weight=None):
        """Inputs within the ball around `x`, and within `bounds`, with a high loss.

        Args:
            x: floating inputs [batch, ...].
            y: their labels, as the compiled loss takes them.
            sample_weight: [batch]; rows of weight 0 stay where they start.

        Returns:
            Tensor of the shape and dtype of `x`.
        """
        if keras.tree.is_nested(x):
            raise ValueError(f"`x` must be one array, not a structure. Received: {type(x)}")
        x = tf.convert_to_tensor(x)
        if not x.dtype.is_floating:
            raise ValueError(f"`x` must be floating. Received: {x.dtype.name}")
        start = self._clipped(x + self._random_offset(x)) if self.random_start else x

        def step(count, attacked):
            gradient = self._input_gradient(attacked, y, sample_weight)
            moved = attacked + self.step_size * _direction(gradient, self.norm)
            return count + 1, self._clipped(x + _projected(moved - x, self.norm, self.epsilon))

        _, attacked = tf.while_loop(
            lambda count, _: count < self.steps, step, (0, start), maximum_iterations=self.steps
        )
        return tf.stop_gradient(attacked)

    def _input_gradient(self, x, y, sample_weight):
        # The scope forgets what a call of the loss leaves in its metrics.
        with keras.StatelessScope(), tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            outputs = self(x, training=False)
            loss = self.compute_loss(
                x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=False
            )
            loss = self.optimizer.scale_loss(loss)
        return tape.gradient(loss, x)

    def _random_offset(self, x):
        """Uniform in the ball, another for each step of the optimizer and each replica."""
        context = tf.distribute.get_replica_context()
        replica = 0 if context is None else context.replica_id_in_sync_group
        step = tf.cast(self.optimizer.iterations.value, tf.int32)
        seed = tf.stack([self.seed, step * 4096 + replica])
        shape, kind = tf.shape(x), {"dtype": x.dtype, "alg": "philox"}
        if self.norm == "linf":
            low, high = -self.epsilon, self.epsilon
            return tf.random.stateless_uniform(shape, seed, low, high, **kind)
        direction = _direction(tf.random.stateless_normal(shape, seed, **kind), "l2")
        # The share of a ball's volume within a radius r is r to the power of the dimension.
        volume = tf.random.stateless_uniform(shape[:1], seed + tf.constant([1, 0]), **kind)
        radius = self.epsilon * volume ** (1 / tf.cast(tf.size(x[0]), x.dtype))
        return direction * tf.reshape(radius, [-1] + [1] * (x.shape.rank - 1))

    def _clipped(self, x):
        return x if self.bounds is None else tf.clip_by_value(x, *self.bounds)

    def get_config(self):
        return {
            **super().get_config(),
            "epsilon": self.epsilon,
            "norm": self.norm,
            "steps": self.steps,
            "step_size": self.step_size,
            "random_start": self.random_start,
            "bounds": self.bounds,
            "seed": self.seed,
        }


def _direction(gradient, norm):
    """The steepest direction of length 1 in the norm; 0 where the gradient is."""
    if norm == "linf":
        return tf.sign(gradient)
    # Divided by the largest value first, so that squares of tiny gradients do not vanish.
    axes = list(range(1, gradient.shape.rank))
    scaled = tf.math.divide_no_nan(
        gradient, tf.reduce_max(tf.abs(gradient), axis=axes, keepdims=True)
    )
    return tf.math.divide_no_nan(scaled, _l2_norm(scaled))


def _projected(offset, norm, epsilon):
    """The nearest offset in the ball."""
    if norm == "linf":
        return tf.clip_by_value(offset, -epsilon, epsilon)
    length = _l2_norm(offset)
    factor = tf.math.divide_no_nan(tf.constant(epsilon, offset.dtype), length)
    return tf.where(length > epsilon, offset * factor, offset)


def _l2_norm(x):
    return tf.sqrt(tf.reduce_sum(x * x, axis=list(range(1, x.shape.rank)), keepdims=True))
