"""AdaFNN: a network of functions, a Basis Layer and fully connected layers on its scores.

    X(t) -> scores <beta_1, X>, ..., <beta_K, X> -> [Dense, + LayerNorm, ReLU, dropout] x L -> Dense

"Deep Learning for Functional Data Analysis with Adaptive Basis Layers", Yao, Mueller, Wang, 2021,
arXiv 2106.10414; section 3, with widths, skip connections around normalizations, dropout and the
initialisation of `kzoo.layers.BasisLayer` as in the authors' code. With Keras's initialisation
(biases of 0, normalizations that start as such) the even response of the paper's simulation took
more than twice as many epochs to learn.
"""

import keras

from kzoo.layers.basis_layer import PAPER, BasisLayer
from kzoo.papers import Example, component


@component(
    PAPER,
    example=Example(
        kwargs={"grid": [0.0, 0.1, 0.5, 1.0], "num_bases": 2, "basis_units": [4], "units": [3]},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 4)).astype("float32"),),
    ),
)
class AdaFNN(keras.Model):
    """Regression or classification of functions that are sampled on a common grid.

    For rows with times or masks of their own, put `kzoo.layers.BasisLayer` into a model of yours.

    Args:
        grid: the sampled points, increasing.
        num_outputs: values or classes. Defaults to 1.
        num_bases: K, the number of basis functions. Defaults to 4.
        basis_units: hidden layers of each basis function. Defaults to (64, 64, 64).
        units: hidden layers on the scores. Defaults to (128, 128, 128).
        dropout_rate: in both, in [0, 1). Defaults to 0.1.
        basis_regularizers: of the basis functions, see `kzoo.layers.BasisLayer`.
        output_activation: Defaults to None, for values or logits.

    Input: float [batch, len(grid)]. Output: [batch, num_outputs].

    Example:

    >>> model = AdaFNN(np.linspace(0, 1, 51), num_bases=2)
    >>> model.compile("adam", "mse")
    >>> model.fit(curves, y, epochs=100)
    >>> model.basis_layer.bases(np.linspace(0, 1, 51))

    Reference:
        Yao et al. (2021), section 3, arxiv.org/abs/2106.10414
    """

    def __init__(
        self,
        grid,
        num_outputs=1,
        num_bases=4,
        basis_units=(64, 64, 64),
        units=(128, 128, 128),
        dropout_rate=0.1,
        basis_regularizers=(),
        output_activation=None,
        **kwargs,
    ):
        for name, value in [("num_outputs", num_outputs), *(("units", width) for width in units)]:
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be positive integers. Received: {value!r}")
        basis_layer = BasisLayer(
            num_bases,
            basis_units,
            dropout_rate=dropout_rate,
            grid=grid,
            basis_regularizers=basis_regularizers,
            name="basis_layer",
        )
        inputs = keras.Input([len(basis_layer.grid)], name="values")
        x = basis_layer(inputs)
        for index, width in enumerate(units):
            x = _dense(width, x.shape[-1], name=f"dense_{index}")(x)
            normal = _layer_norm(name=f"norm_{index}")(x)
            x = keras.layers.Add(name=f"add_{index}")([x, normal])
            x = keras.layers.ReLU(name=f"relu_{index}")(x)
            x = keras.layers.Dropout(dropout_rate, name=f"dropout_{index}")(x)
        predict = _dense(num_outputs, x.shape[-1], "predictions", activation=output_activation)
        outputs = predict(x)
        super().__init__(inputs, outputs, **kwargs)
        self.basis_layer = basis_layer
        self.config = {
            "num_outputs": num_outputs,
            "units": list(units),
            "output_activation": output_activation,
        }

    def get_config(self):
        layer = self.basis_layer.get_config()
        return {
            "name": self.name,
            "grid": layer["grid"],
            "num_bases": layer["num_bases"],
            "basis_units": layer["hidden_units"],
            "dropout_rate": layer["dropout_rate"],
            "basis_regularizers": layer["basis_regularizers"],
            **self.config,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def _dense(units, inputs, name, activation=None):
    uniform = keras.initializers.RandomUniform(-(inputs**-0.5), inputs**-0.5)
    return keras.layers.Dense(
        units,
        activation,
        kernel_initializer=uniform,
        bias_initializer=uniform.clone(),
        name=name,
    )


def _layer_norm(name):
    normal = keras.initializers.RandomNormal(stddev=1.0)
    return keras.layers.LayerNormalization(
        epsilon=1e-6,
        gamma_initializer=normal,
        beta_initializer=normal.clone(),
        name=name,
    )
