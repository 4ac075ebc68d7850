"""The base of training methods that wrap a model: they change how it learns, not what it is."""

import keras


class TrainingMethod(keras.Model):
    """A `keras.Model` that computes what `model` computes and trains it in its own way.

    A subclass implements `train_step(data)` and extends `get_config`. It trains with `fit` and
    with `kzoo.training.Loop`, under any strategy. What is exported and explained is `.model`.

    Args:
        model: the `keras.Model` to train.
    """

    def __init__(self, model, **kwargs):
        if not isinstance(model, keras.Model):
            raise TypeError(f"`model` must be a keras.Model. Received: {type(model).__name__}")
        super().__init__(**kwargs)
        self.model = model

    @property
    def output_names(self):
        """Those of the model, by which losses and metrics are named; of a functional model only."""
        return self.model.output_names

    def build(self, input_shape):
        if not self.model.built:
            self.model.build(input_shape)
        super().build(input_shape)

    def call(self, inputs, training=None):
        return self.model(inputs, training=training)

    def get_config(self):
        model = keras.saving.serialize_keras_object(self.model)
        return {**super().get_config(), "model": model}

    @classmethod
    def from_config(cls, config):
        model = keras.saving.deserialize_keras_object(config.pop("model"))
        return cls(model, **config)
