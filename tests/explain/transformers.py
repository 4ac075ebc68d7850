"""Small transformers of plain Keras layers, as users build them, for the tests of explainers."""

import keras


def vision_transformer(
    image=(8, 8, 1), patch=2, dim=8, heads=2, blocks=2, classes=10, activation="gelu", bias=True
):
    """A classifier of images: patches by a convolution, a class token, learned positions."""
    inputs = keras.Input(image)
    x = keras.layers.Conv2D(dim, patch, patch, use_bias=bias, name="patches")(inputs)
    x = keras.layers.Reshape([-1, dim])(x)
    x = ClassToken(name="class_token")(x)
    x = Positions(name="positions")(x)
    for number in range(blocks):
        x = block(x, dim, heads, activation, number)
    x = keras.layers.LayerNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="head")(x[:, 0]))


def text_transformer(words=12, tokens=6, dim=8, heads=2, blocks=2, classes=3, pool="first"):
    """A classifier of integer sequences; it reads the first token, or the mean of all."""
    inputs = keras.Input([tokens], dtype="int32")
    x = keras.layers.Embedding(words, dim, name="embedding")(inputs)
    x = Positions(name="positions")(x)
    for number in range(blocks):
        x = block(x, dim, heads, "relu", number)
    x = keras.layers.LayerNormalization(name="norm")(x)
    x = x[:, 0] if pool == "first" else keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(classes, "softmax", name="head")(x))


def block(x, dim, heads, activation, number):
    """A pre-norm block: self-attention and two dense layers, each added to what came in."""
    normed = keras.layers.LayerNormalization(name=f"norm_a{number}")(x)
    attention = keras.layers.MultiHeadAttention(heads, dim // heads, name=f"attention{number}")
    x = keras.layers.Add(name=f"attended{number}")([x, attention(normed, normed)])
    hidden = keras.layers.LayerNormalization(name=f"norm_b{number}")(x)
    hidden = keras.layers.Dense(2 * dim, activation, name=f"hidden{number}")(hidden)
    hidden = keras.layers.Dropout(0.1)(hidden)
    # The sum as an operation, the other form in which users write it.
    return x + keras.layers.Dense(dim, name=f"out{number}")(hidden)


@keras.saving.register_keras_serializable("kzoo_tests")
class ClassToken(keras.layers.Layer):
    """Puts a learned token before the others."""

    def build(self, shape):
        self.token = self.add_weight(shape=[1, 1, shape[-1]], initializer="random_normal")

    def call(self, x):
        token = keras.ops.repeat(self.token, keras.ops.shape(x)[0], axis=0)
        return keras.ops.concatenate([keras.ops.cast(token, x.dtype), x], axis=1)

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + 1, shape[2])


@keras.saving.register_keras_serializable("kzoo_tests")
class Positions(keras.layers.Layer):
    """Adds a learned vector for each position."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, x):
        return x + self.table
