"""Squared distances to learned prototypes in a latent space.

    d_j = ||f - p_j||^2 = ||f||^2 - 2 f . p_j + ||p_j||^2

"Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its
Predictions", Li, Liu, Chen, Rudin, 2017, arXiv 1710.04806; the prototype layer.

Open choice: prototypes begin uniform in [0, 1), as in the authors' code. What rounding makes
negative is 0.
"""

import keras
from keras import ops

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that "
    "Explains Its Predictions",
    authors=("Oscar Li", "Hao Liu", "Chaofan Chen", "Cynthia Rudin"),
    year=2017,
    arxiv="1710.04806",
)


@component(
    PAPER,
    example=Example(
        kwargs={"units": 3},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 4)).astype("float32"),),
    ),
)
class PrototypeDistance(keras.layers.Layer):
    """Squared Euclidean distances to prototypes, which are vectors of the size of the inputs.

    Under a 16-bit policy it computes, and returns, float32: the terms of a small distance nearly
    cancel.

    Args:
        units: number of prototypes, at least 1.
        prototypes_initializer, prototypes_regularizer, prototypes_constraint: default to a uniform
            distribution over [0, 1), None and None.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [batch, ..., d], floats. Output shape: [batch, ..., units], at least 0.

    Reference:
        Li et al. (2017), arxiv.org/abs/1710.04806
    """

    def __init__(
        self,
        units,
        prototypes_initializer=None,
        prototypes_regularizer=None,
        prototypes_constraint=None,
        dtype=None,
        **kwargs,
    ):
        if not isinstance(units, int) or isinstance(units, bool) or units < 1:
            raise ValueError(f"`units` must be an integer of at least 1. Received: {units!r}")
        policy = keras.dtype_policies.get(dtype)
        narrow = policy.compute_dtype in ("float16", "bfloat16")
        super().__init__(dtype="float32" if narrow else policy, **kwargs)
        self.units = units
        self.prototypes_initializer = keras.initializers.get(
            prototypes_initializer or keras.initializers.RandomUniform(0.0, 1.0)
        )
        self.prototypes_regularizer = keras.regularizers.get(prototypes_regularizer)
        self.prototypes_constraint = keras.constraints.get(prototypes_constraint)

    def build(self, input_shape):
        self.prototypes = self.add_weight(
            name="prototypes",
            shape=(self.units, input_shape[-1]),
            initializer=self.prototypes_initializer,
            regularizer=self.prototypes_regularizer,
            constraint=self.prototypes_constraint,
        )
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: input_shape[-1]})

    def call(self, inputs):
        prototypes = ops.convert_to_tensor(self.prototypes)
        squares = ops.sum(ops.square(inputs), axis=-1, keepdims=True)
        products = ops.matmul(inputs, ops.transpose(prototypes))
        return ops.relu(squares - 2.0 * products + ops.sum(ops.square(prototypes), axis=-1))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "prototypes_initializer": keras.initializers.serialize(self.prototypes_initializer),
            "prototypes_regularizer": keras.regularizers.serialize(self.prototypes_regularizer),
            "prototypes_constraint": keras.constraints.serialize(self.prototypes_constraint),
        }
