"""A multi-layer perceptron whose gradients stay bounded at any depth.

    x <- activation_l(UncenteredBatchNorm(W_l x)),    W_l uniform over the orthogonal matrices

"Towards Training Without Depth Limits: Batch Normalization Without Gradient Explosion", Meterez,
Joudaki, Orabona, Immer, Raetsch, Daneshmand, 2023, arXiv 2310.02012; sections 3 and 5. The parts
are `kzoo.layers.UncenteredBatchNorm`, `kzoo.layers.ShapedActivation` and Keras's own
`keras.initializers.Orthogonal`.

The theory is for square layers, as many samples in the batch as units, linearly independent, and
no activation. Order and output layer, a plain dense one, are those of the authors' code.
"""

import keras

from kzoo.layers.shaped_activation import ShapedActivation, shaping_gains
from kzoo.layers.uncentered_batch_norm import PAPER, UncenteredBatchNorm
from kzoo.papers import Example, component


@component(
    PAPER,
    example=Example(
        kwargs={"features": 4, "depth": 3, "width": 5, "outputs": 2, "activation": "tanh"},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 4)).astype("float32"),),
    ),
)
class DepthStableMLP(keras.Model):
    """Dense layers without biases, each followed by `UncenteredBatchNorm` and an activation.

    Args:
        features: number of inputs.
        depth: number of hidden layers.
        width: of every hidden layer; the size of the batch, or more.
        outputs: number of outputs, or None for the last hidden layer's.
        activation: name of, or a function; None for the linear network of the theory.
        gain_exponent: layer l's activation sees l^-gain_exponent times its input. Defaults to 0.4.
        kernel_initializer: of the hidden layers and the output, without a seed, which would make
            all layers equal: `keras.utils.set_random_seed` does it. Defaults to "orthogonal".
        epsilon: see `UncenteredBatchNorm`. Defaults to 1e-6.
        dtype: policy of the layers. Defaults to the global one.

    Input: floating [batch, features]. Output: [batch, outputs].

    Example:

    >>> model = DepthStableMLP(3072, depth=1000, width=100, outputs=10, activation="tanh")

    Reference:
        Meterez et al. (2023), arxiv.org/abs/2310.02012
    """

    def __init__(
        self,
        features,
        depth,
        width,
        outputs=None,
        activation=None,
        gain_exponent=0.4,
        kernel_initializer="orthogonal",
        epsilon=1e-6,
        dtype=None,
        **kwargs,
    ):
        sizes = {"features": features, "depth": depth, "width": width, "outputs": outputs}
        for name, value in sizes.items():
            if name == "outputs" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        initializer = keras.initializers.get(kernel_initializer)
        activation = None if activation is None else keras.activations.get(activation)
        super().__init__(dtype=policy, **kwargs)
        self.config = {
            **sizes,
            "activation": None if activation is None else keras.activations.serialize(activation),
            "gain_exponent": gain_exponent,
            "kernel_initializer": keras.initializers.serialize(initializer),
            "epsilon": epsilon,
            "dtype": keras.dtype_policies.serialize(policy),
        }
        gains = shaping_gains(depth, gain_exponent)
        self.hidden = [self._stage(*each) for each in enumerate(gains, 1)]
        self.head = None if outputs is None else self._dense(outputs, "outputs")
        self.build((None, features))

    def _dense(self, units, name):
        # An initializer each: Keras's give the same values again.
        initializer = keras.initializers.get(self.config["kernel_initializer"])
        return keras.layers.Dense(
            units,
            use_bias=False,
            kernel_initializer=initializer,
            dtype=self.dtype_policy,
            name=name,
        )

    def _stage(self, layer, gain):
        """The layers of one hidden layer; a loop over them has no limit of depth."""
        policy, activation = self.dtype_policy, self.config["activation"]
        norm = UncenteredBatchNorm(
            epsilon=self.config["epsilon"], dtype=policy, name=f"norm_{layer}"
        )
        stage = [self._dense(self.config["width"], f"dense_{layer}"), norm]
        if activation is not None:
            stage.append(
                ShapedActivation(activation, gain, dtype=policy, name=f"activation_{layer}")
            )
        return stage

    def build(self, input_shape):
        if len(input_shape) != 2 or input_shape[-1] != self.config["features"]:
            raise ValueError(
                f"Inputs must be [batch, {self.config['features']}]. Received: {input_shape}"
            )
        width = self.config["width"]
        for dense, norm, *_ in self.hidden:
            dense.build(input_shape)
            norm.build((None, width))
            input_shape = (None, width)
        if self.head is not None:
            self.head.build(input_shape)
        self.built = True

    def call(self, inputs, training=None):
        x = self.hidden_states(inputs, training)[-1]
        return x if self.head is None else self.head(x)

    def hidden_states(self, inputs, training=None):
        """What comes out of each hidden layer, a list of `depth` tensors [batch, width]."""
        states = []
        for dense, norm, *activation in self.hidden:
            inputs = norm(dense(inputs), training=training)
            inputs = activation[0](inputs) if activation else inputs
            states.append(inputs)
        return states

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.config["outputs"] or self.config["width"])

    def get_config(self):
        return {"name": self.name, **self.config}
