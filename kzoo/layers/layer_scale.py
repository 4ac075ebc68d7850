"""Layer scale: one learned factor per channel at the end of a residual branch.

    y = gamma * x,   gamma close to 0 at first, so that a deep net begins as the identity

"Going Deeper with Image Transformers", Touvron, Cord, Sablayrolles, Synnaeve, Jegou, 2021,
arXiv 2103.17239; equation 4. It is a piece of InceptionNeXt and other backbones.
"""

import keras


@keras.saving.register_keras_serializable("kzoo")
class LayerScale(keras.layers.Layer):
    """Multiplies each channel by a weight.

    Args:
        initial_value: of all weights. Defaults to 1e-6.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [..., channels], floats. Output shape: the same.

    Reference:
        Touvron et al. (2021), arxiv.org/abs/2103.17239
    """

    def __init__(self, initial_value=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.initial_value = float(initial_value)
        self.supports_masking = True

    def build(self, input_shape):
        self.gamma = self.add_weight(
            name="gamma",
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_value),
        )

    def call(self, inputs):
        return inputs * self.gamma

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "initial_value": self.initial_value}
