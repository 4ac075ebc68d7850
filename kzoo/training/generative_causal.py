"""Generative causal explanations: latent factors of the data, some of which move the classifier.

    maximize  C + lambda D      over the encoder and the decoder g        (equation 3)
    C = I(alpha; Y),  Y ~ classifier(g(alpha, beta)),  (alpha, beta) ~ N(0, I)
    D = -E[ ||x - g(z)||^2 / (2 variance) + KL( q(z | x) || N(0, I) ) ],  z ~ q(z | x)

alpha are the first factors of z, the causal ones, beta the others. C is estimated from samples, see
`kzoo.ops.information_flow`; D is the evidence lower bound of a variational autoencoder.

"Generative causal explanations of black-box classifiers", O'Shaughnessy, Canal, Connor, Rozell,
Davenport, 2020, arXiv 2006.13913.

Open choices: the defaults are those of the authors' code for MNIST; its D, squared error plus KL,
is that of `variance` 0.5. The decoder samples in inference mode for C, in training mode for D. The
paper's choice of the numbers of factors and of lambda, by hand, is described below.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.ops.distribute import num_replicas
from kzoo.ops.information_flow import (
    class_log_probabilities,
    information_flow,
    sample_interventions,
)
from kzoo.papers import Example, Paper, component
from kzoo.training.method import TrainingMethod

PAPER = Paper(
    title="Generative causal explanations of black-box classifiers",
    authors=(
        "Matthew O'Shaughnessy",
        "Gregory Canal",
        "Marissa Connor",
        "Christopher Rozell",
        "Mark Davenport",
    ),
    year=2020,
    arxiv="2006.13913",
)


def _example():
    inputs = keras.Input([6])
    # Little noise in the few steps that an example takes.
    low = keras.initializers.Constant(-6.0)
    spread = keras.layers.Dense(3, kernel_initializer="zeros", bias_initializer=low)
    encoder = keras.Model(inputs, [keras.layers.Dense(3)(inputs), spread(inputs)])
    decoder = keras.Sequential([keras.Input([3]), keras.layers.Dense(6)])
    return {
        "model": keras.Sequential([keras.Input([6]), keras.layers.Dense(3, "softmax")]),
        "encoder": encoder,
        "decoder": decoder,
        "elbo_weight": 1.0,
        "num_alpha": 4,
        "num_beta": 8,
    }


@component(PAPER, example=Example(kwargs=_example))
class GenerativeCausalExplainer(TrainingMethod):
    """Learns latent factors of the data, of which the first have a large effect on a classifier.

    What is trained are the encoder and the decoder, on inputs alone: labels are ignored, as are the
    loss and the metrics that it is compiled with. The classifier stays as it is, and calling the
    explainer is calling the classifier. Sample weights weigh the rows in D; Keras drops them where
    no labels come with them. `information_flow` measures what was found, and
    `kzoo.explain.latent_sweep` shows it.

    The history has `loss`, which is -(C + lambda D), `information_flow`, which is C,
    `reconstruction` and `kl`, the two terms of -D. Under `tf.distribute` each replica takes samples
    of its own, and the mean of their C.

    How the paper chooses its parameters: with no causal factors, take as many as it needs until D
    no longer grows; then turn them into causal factors, one after the other, each time with the
    largest lambda that gives a large C while D stays where it was, until C no longer grows.

    Args:
        model: the classifier, from inputs to [batch, classes] probabilities, or [batch, 1].
        encoder: a Keras model from inputs to [mean, log_variance] of the factors, [batch, d] each.
        decoder: a Keras model from factors [batch, d] to inputs.
        causal_factors: K, the number of causal factors, from 0 to d. With 0 it is a plain
            variational autoencoder. Defaults to 1.
        elbo_weight: lambda, at least 0. Defaults to 0.05.
        variance: that of a value of the inputs around the decoder's, above 0. Defaults to 0.5.
        num_alpha: draws of the causal factors in a step. Defaults to 25.
        num_beta: draws of the other factors for each of them. Defaults to 100.
        from_logits: whether the classifier gives logits. Defaults to False.
        seed: of all draws, which depend on the step of the optimizer besides. Defaults to 0.

    Example:

    >>> explainer = GenerativeCausalExplainer(classifier, encoder, decoder, causal_factors=1)
    >>> explainer.compile(keras.optimizers.Adam(5e-4))
    >>> history = explainer.fit(images, epochs=50)
    >>> nats = [explainer.information_flow(factor) for factor in range(explainer.factors)]
    >>> sweep = latent_sweep(classifier, decoder, explainer.encode(images[:8]))

    Reference:
        O'Shaughnessy et al. (2020), equation 3, arxiv.org/abs/2006.13913
    """

    def __init__(
        self,
        model,
        encoder,
        decoder,
        causal_factors=1,
        elbo_weight=0.05,
        variance=0.5,
        num_alpha=25,
        num_beta=100,
        from_logits=False,
        seed=0,
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        self.factors = _count_factors(encoder, decoder)
        if not isinstance(causal_factors, int) or not 0 <= causal_factors <= self.factors:
            raise ValueError(
                f"`causal_factors` must be an integer from 0 to {self.factors}. "
                f"Received: {causal_factors!r}"
            )
        if not isinstance(elbo_weight, int | float) or not elbo_weight >= 0:
            raise ValueError(
                f"`elbo_weight` must be a number of at least 0. Received: {elbo_weight!r}"
            )
        if not isinstance(variance, int | float) or not variance > 0:
            raise ValueError(f"`variance` must be a number above 0. Received: {variance!r}")
        for name, value in (("num_alpha", num_alpha), ("num_beta", num_beta)):
            _check_count(name, value)
        self.encoder = encoder
        self.decoder = decoder
        self.causal_factors = causal_factors
        self.elbo_weight = elbo_weight
        self.variance = variance
        self.num_alpha = num_alpha
        self.num_beta = num_beta
        self.from_logits = from_logits
        self.seed = seed
        self.information_flow_tracker = keras.metrics.Mean(name="information_flow")
        self.reconstruction_tracker = keras.metrics.Mean(name="reconstruction")
        self.kl_tracker = keras.metrics.Mean(name="kl")
        self.build(encoder.input_shape)

    @property
    def trainable_variables(self):
        """Those of the encoder and the decoder: the classifier is not trained."""
        return [*self.encoder.trainable_variables, *self.decoder.trainable_variables]

    @property
    def trainable_weights(self):
        return self.trainable_variables

    def train_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weights = self.trainable_variables
        seed = _seed_of_step(self.seed, self.optimizer.iterations)
        with tf.GradientTape() as tape:
            loss = self._loss(x, sample_weight, seed, training=True)
            scaled = self.optimizer.scale_loss(loss / num_replicas())
        gradients = tape.gradient(scaled, [weight.value for weight in weights])
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return self.get_metrics_result()

    def test_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._loss(x, sample_weight, tf.constant([self.seed, -1]), training=False)
        return self.get_metrics_result()

    def information_flow(self, factors=None, num_alpha=100, num_beta=1000, seed=0):
        """The information flow from some factors to the classifier's output.

        Args:
            factors: number of a factor, or a sequence of them, from 0 on. None for the causal ones.
            num_alpha: draws of these factors. Defaults to 100.
            num_beta: draws of all others for each of them. Defaults to 1000.
            seed: of the draws. Defaults to 0.

        Returns:
            float, in nats.
        """
        if factors is None:
            factors = range(self.causal_factors)
        factors = np.atleast_1d(factors).tolist()
        if not factors or not all(0 <= factor < self.factors for factor in factors):
            raise ValueError(
                f"`factors` must have at least one number from 0 to {self.factors - 1}. "
                f"Received: {factors}"
            )
        _check_count("num_alpha", num_alpha)
        _check_count("num_beta", num_beta)
        return float(self._flow(factors, num_alpha, num_beta, tf.constant([seed, 0])))

    def encode(self, inputs):
        """The means of the factors of `inputs`: float array [batch, d]."""
        mean, _ = self.encoder.predict(inputs, verbose=0)
        return mean

    def _loss(self, x, sample_weight, seed, training):
        """-(C + lambda D), the mean over this replica's rows; its terms go to the metrics."""
        seeds = tf.random.split(seed, alg="philox")
        reconstruction, kl = self._elbo_terms(x, seeds[0], training)
        if sample_weight is not None:
            row_weight = tf.reshape(tf.cast(sample_weight, kl.dtype), [-1])
            reconstruction, kl = row_weight * reconstruction, row_weight * kl
        reconstruction, kl = tf.reduce_mean(reconstruction), tf.reduce_mean(kl)
        if self.causal_factors:
            causal = range(self.causal_factors)
            flow = self._flow(causal, self.num_alpha, self.num_beta, seeds[1])
        else:
            flow = tf.zeros([], kl.dtype)
        loss = self.elbo_weight * (reconstruction + kl) - tf.cast(flow, kl.dtype)
        trackers = {
            self._loss_tracker: loss,
            self.information_flow_tracker: flow,
            self.reconstruction_tracker: reconstruction,
            self.kl_tracker: kl,
        }
        for tracker, value in trackers.items():
            tracker.update_state(value, sample_weight=tf.shape(x)[0])
        return loss

    def _elbo_terms(self, x, seed, training):
        """Negative log-likelihood, but for a constant, and KL divergence of each row."""
        mean, log_variance = (_full(each) for each in self.encoder(x, training=training))
        noise = tf.random.stateless_normal(tf.shape(mean), seed, dtype=mean.dtype, alg="philox")
        decoded = self.decoder(mean + tf.exp(0.5 * log_variance) * noise, training=training)
        errors = tf.square(_full(decoded) - _full(x))
        squared = tf.reduce_sum(errors, axis=range(1, errors.shape.rank))
        excess = tf.square(mean) + tf.exp(log_variance) - 1 - log_variance
        return squared / (2 * self.variance), 0.5 * tf.reduce_sum(excess, axis=-1)

    def _flow(self, factors, num_alpha, num_beta, seed):
        intervened = [factor in factors for factor in range(self.factors)]
        dtype = keras.config.floatx()
        latents = sample_interventions(intervened, num_alpha, num_beta, seed, dtype)
        decoded = self.decoder(tf.reshape(latents, [-1, self.factors]), training=False)
        outputs = self.model(decoded, training=False)
        log_p = class_log_probabilities(outputs, self.from_logits)
        return information_flow(tf.reshape(log_p, [num_alpha, num_beta, log_p.shape[-1]]))

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "decoder": keras.saving.serialize_keras_object(self.decoder),
            "causal_factors": self.causal_factors,
            "elbo_weight": self.elbo_weight,
            "variance": self.variance,
            "num_alpha": self.num_alpha,
            "num_beta": self.num_beta,
            "from_logits": self.from_logits,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        parts = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("encoder", "decoder")
        }
        return super().from_config({**config, **parts})


def _count_factors(encoder, decoder):
    """d, after a check that the encoder and the decoder fit each other."""
    for name, value in (("encoder", encoder), ("decoder", decoder)):
        if not isinstance(value, keras.Model) or not value.built:
            raise TypeError(f"`{name}` must be a built keras.Model. Received: {value!r}")
    shapes = encoder.output_shape
    is_pair = len(shapes) == 2 and all(isinstance(shape, tuple) for shape in shapes)
    if not is_pair or shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise ValueError(
            "`encoder` must have two outputs, [mean, log_variance], [batch, factors] each. "
            f"Received outputs of the shapes {shapes}"
        )
    if decoder.input_shape != shapes[0] or decoder.output_shape != encoder.input_shape:
        raise ValueError(
            f"`decoder` must lead from factors {shapes[0]} to inputs {encoder.input_shape}. "
            f"Received: from {decoder.input_shape} to {decoder.output_shape}"
        )
    return shapes[0][-1]


def _check_count(name, value):
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")


def _seed_of_step(seed, iterations):
    """int32 [2], another for each step and each replica."""
    context = tf.distribute.get_replica_context()
    replica = 0 if context is None else context.replica_id_in_sync_group
    return tf.stack([seed, tf.cast(iterations.value, tf.int32) * 4096 + replica])


def _full(x):
    """`x` in the precision of losses, which no 16 bits have."""
    return tf.cast(x, keras.config.floatx())
