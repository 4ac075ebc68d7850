"""Self-attention network (SAN): a classifier of tables whose attention ranks the features.

    Omega(X) = 1/k sum_h X * softmax(X W_h + b_h)            (* elementwise, W_h [F, F])
    output   = sigma(W_2 SELU(W_1 Omega(X) + b_1) + b_2)

    global attention    R_G = 1/k sum_h softmax(diag(W_h))
    instance attention  R(x) = 1/k sum_h softmax(x W_h + b_h), averaged over all examples or over
                        those that are classified correctly

"Interpreting Black-box Machine Learning Models for High Dimensional Datasets", Karim et al., 2022,
arXiv 2208.13405, where it is one of the black boxes; the network is that of "Feature Importance
Estimation with Self-Attention Networks", Skrlj, Dzeroski, Lavrac, Petkovic, 2020, arXiv 2002.04464.

Where the paper and the authors' code differ, the paper is followed: the attention of an example is
the mean of the heads' softmaxes (the code has the softmax of the mean of their logits). Dropout,
which the equations leave out, comes before the SELU, as in the code.
"""

import keras
import numpy as np

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Interpreting Black-box Machine Learning Models for High Dimensional Datasets",
    authors=(
        "Md. Rezaul Karim", "Md. Shajalal", "Alex Graß", "Till Döhmen", "Sisay Adugna Chala",
        "Alexander Boden", "Christian Beecks", "Stefan Decker",
    ),
    year=2022,
    arxiv="2208.13405",
)  # fmt: skip


@component(
    PAPER,
    example=Example(
        kwargs={"num_features": 6, "num_classes": 3, "num_heads": 2, "hidden_units": 5},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 6)).astype("float32"),),
    ),
)
class SelfAttentionTabular(keras.Model):
    """The self-attention network of tables of numbers.

    Args:
        num_features: columns of the table, F. A head has F (F + 1) weights.
        num_classes: number of outputs.
        num_heads: k. Defaults to 1.
        hidden_units: width of the dense layer. Defaults to 64.
        dropout_rate: in [0, 1). Defaults to 0.2.
        classifier_activation: of the outputs; None for logits. Defaults to "sigmoid", which the
            authors train with a binary cross-entropy for each class.
        dtype: policy of the layers. Defaults to the global one; the outputs are at least float32.

    Input: float [batch, num_features], best with columns of like scale. Output: [batch,
    num_classes].

    Example:

    >>> model = SelfAttentionTabular(num_features=30, num_classes=2)
    >>> model.compile("adam", "binary_crossentropy")
    >>> model.fit(x, keras.utils.to_categorical(y), epochs=32)
    >>> np.argsort(-model.importance())[:10]

    Reference:
        Skrlj et al. (2020), section 3, arxiv.org/abs/2002.04464
    """

    def __init__(
        self,
        num_features,
        num_classes,
        num_heads=1,
        hidden_units=64,
        dropout_rate=0.2,
        classifier_activation="sigmoid",
        dtype=None,
        **kwargs,
    ):
        sizes = {
            "num_features": num_features,
            "num_classes": num_classes,
            "num_heads": num_heads,
            "hidden_units": hidden_units,
        }
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"`dropout_rate` must be in [0, 1). Received: {dropout_rate!r}")
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        x = inputs = keras.Input([num_features], name="features", dtype=policy.variable_dtype)
        heads = [
            keras.layers.Dense(num_features, "softmax", name=f"attention_{head}", dtype=policy)
            for head in range(num_heads)
        ]
        attention = _mean([head(x) for head in heads], "attention", policy)
        x = keras.layers.Multiply(name="attended", dtype=policy)([x, attention])
        x = keras.layers.Dense(hidden_units, name="hidden", dtype=policy)(x)
        x = keras.layers.Dropout(dropout_rate, name="dropout", dtype=policy)(x)
        x = keras.layers.Activation("selu", name="selu", dtype=policy)(x)
        outputs = keras.layers.Dense(
            num_classes,
            classifier_activation,
            name="predictions",
            dtype=keras.backend.result_type(policy.compute_dtype, "float32"),
        )(x)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.config = {
            **sizes,
            "dropout_rate": dropout_rate,
            "classifier_activation": classifier_activation,
            "dtype": keras.dtype_policies.serialize(policy),
        }

    def attention(self, x, batch_size=256):
        """The attention that each feature gets, the mean over the heads.

        Args:
            x: float [n, num_features].
            batch_size: rows at once. Defaults to 256.

        Returns:
            float [n, num_features]; every row adds up to 1.
        """
        attention = keras.Model(self.inputs[0], self.get_layer("attention").output)
        return attention.predict(np.asarray(x), batch_size=batch_size, verbose=0)

    def importance(self, x=None, y=None):
        """The importance of every feature.

        Args:
            x: float [n, num_features]: the mean of the attention over these rows. None for the
                global attention, which the weights alone say.
            y: int [n], classes; only rows whose top class this is are averaged. None for all.

        Returns:
            float [num_features] with the sum 1. The global attention says by how much the value of
            a feature raises the feature's own attention; of columns with both signs it says little.
        """
        if x is None:
            if y is not None:
                raise ValueError("`y` needs `x`.")
            return self._global_attention()
        attention = self.attention(x)
        if y is None:
            return attention.mean(axis=0)
        predicted = self.predict(np.asarray(x), verbose=0)
        correct = predicted.argmax(axis=-1) == np.asarray(y)
        if predicted.shape[1] < 2 or correct.shape != (len(attention),) or not correct.any():
            raise ValueError(
                "`y` must be the class of each row, right for one at least, for a model of two "
                f"classes or more. Received: shape {np.shape(y)}"
            )
        return attention[correct].mean(axis=0)

    def _global_attention(self):
        heads = range(self.config["num_heads"])
        kernels = [self.get_layer(f"attention_{head}").kernel for head in heads]
        diagonals = keras.ops.stack([keras.ops.diagonal(kernel) for kernel in kernels])
        return keras.ops.convert_to_numpy(keras.ops.mean(keras.ops.softmax(diagonals), axis=0))

    def get_config(self):
        return {"name": self.name, **self.config}


def _mean(tensors, name, dtype):
    """The mean of one tensor or more, as a layer of this name."""
    if len(tensors) == 1:
        return keras.layers.Identity(name=name, dtype=dtype)(tensors[0])
    return keras.layers.Average(name=name, dtype=dtype)(tensors)
