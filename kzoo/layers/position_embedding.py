"""A learned vector for each position of a feature map, added to it."""

import keras


@keras.saving.register_keras_serializable("kzoo")
class PositionEmbedding2D(keras.layers.Layer):
    """Adds a weight of the size of the feature map.

    Args:
        embeddings_initializer: defaults to a normal distribution of deviation 0.02.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [batch, height, width, channels], floats, of fixed height and width. Output shape:
    the same.
    """

    def __init__(self, embeddings_initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.embeddings_initializer = keras.initializers.get(
            embeddings_initializer or keras.initializers.RandomNormal(stddev=0.02)
        )

    def build(self, input_shape):
        if len(input_shape) != 4 or None in input_shape[1:]:
            raise ValueError(
                f"{self.name!r} needs inputs [batch, height, width, channels] of fixed height, "
                f"width and channels. Received the shape {tuple(input_shape)}"
            )
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=tuple(input_shape[1:]),
            initializer=self.embeddings_initializer,
        )
        self.input_spec = keras.layers.InputSpec(shape=(None, *input_shape[1:]))

    def call(self, inputs):
        return inputs + self.embeddings

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        initializer = keras.initializers.serialize(self.embeddings_initializer)
        return {**super().get_config(), "embeddings_initializer": initializer}
