"""Inverts the features of a network: a generator that draws the image from a deep code.

    h1 = E1(x),  h = E2(h1)                    the code h of an image x, in a fixed encoder
    x' = G(h),  h1' = E1(x'),  h' = E2(h1')
    L_G = w_img ||x - x'||^2 + w_h1 ||h1 - h1'||^2 + w_h ||h - h'||^2 - w_gan log D(x')
    L_D = -log D(x) - log(1 - D(x'))

With w_h = 0 it is the G of DGN-AM and PPGN-h. With it, h -> x' -> h1' -> h' is an autoencoder of
codes, the prior of Noiseless Joint PPGN-h; with Gaussian noise on h, x' and h1' in addition, it is
the denoising autoencoder of Joint PPGN-h.

"Plug & Play Generative Networks: Conditional Iterative Generation of Images in Latent Space",
Nguyen, Clune, Bengio, Dosovitskiy, Yosinski, 2016, arXiv 1612.00005; section 3 and its supplement.
The losses of G without w_h are those of "Generating Images with Perceptual Similarity Metrics based
on Deep Networks", Dosovitskiy, Brox, 2016, arXiv 1602.02644; as there, D rests while it is much
better than G.

Open choices: G and D take their steps at once, from the same forward pass, with one optimizer. A
step in which D rests gives its weights a gradient of zero, so that a momentum still moves them. The
weights of the losses are of the size of the images and features, so that the authors' do not carry
over; all are 1 here. D judges the image alone, before noise is added to it.
"""

import itertools

import keras
import tensorflow as tf

from kzoo.ops.distribute import num_replicas, sum_over_replicas
from kzoo.papers import Example, Paper, component
from kzoo.training.method import TrainingMethod

PAPER = Paper(
    title="Plug & Play Generative Networks: Conditional Iterative Generation of Images in Latent "
    "Space",
    authors=(
        "Anh Nguyen",
        "Jeff Clune",
        "Yoshua Bengio",
        "Alexey Dosovitskiy",
        "Jason Yosinski",
    ),
    year=2016,
    arxiv="1612.00005",
)
_TERMS = ("image", "feature", "code", "adversarial", "discriminator")
_OPTIONS = (
    "image_weight",
    "feature_weight",
    "code_weight",
    "adversarial_weight",
    "code_noise",
    "image_noise",
    "feature_noise",
    "discriminator_rest",
)


def _example():
    layers = keras.layers
    return {
        "model": keras.Sequential([keras.Input([3]), layers.Dense(6)]),
        "feature_encoder": keras.Sequential([keras.Input([6]), layers.Dense(4, "tanh")]),
        "code_encoder": keras.Sequential([keras.Input([4]), layers.Dense(3)]),
        "discriminator": keras.Sequential([keras.Input([6]), layers.Dense(1)]),
        "adversarial_weight": 0.1,
        "feature_noise": 0.01,
    }


def _rows(rng, batch):
    return rng.normal(size=(batch, 6)), rng.integers(0, 3, batch)


@component(PAPER, example=Example(kwargs=_example, inputs=_rows))
class FeatureInverterGAN(TrainingMethod):
    """Trains a generator to draw the images that an encoder gave codes of.

    It is fed images alone: labels are ignored, as are the loss and the metrics that it is compiled
    with. Trained are the generator and the discriminator; the encoders stay as they are. Calling it
    reconstructs images, G(E2(E1(x))); the generator is `model`. For `kzoo.explain.ppgn`, E2 after
    E1 is the `encoder`. Sample weights weigh the rows; Keras drops them where no labels come with
    them.

    The history has `loss`, which is L_G, and its terms before they are weighted, as sums over the
    values of an image: `image`, `feature`, `code`, `adversarial`, besides `discriminator`, which
    is L_D. Regularizers of the generator and the discriminator are added to L_G and L_D.

    Args:
        model: the generator G, a built `keras.Model` from codes to images.
        feature_encoder: E1, a built `keras.Model` from images to features.
        code_encoder: E2, a built `keras.Model` from features to codes.
        discriminator: D, a built `keras.Model` from images to [batch, 1] logits, positive for
            images of the data.
        image_weight: w_img, at least 0. Defaults to 1, as the next three.
        feature_weight: w_h1.
        code_weight: w_h; 0 for the generator of PPGN-h.
        adversarial_weight: w_gan.
        code_noise: standard deviation of the noise on h, at least 0. Defaults to 0, as the next
            two, as in Noiseless Joint PPGN-h.
        image_noise: that on x', where E1 sees it.
        feature_noise: that on h1', where E2 sees it.
        discriminator_rest: the discriminator learns nothing in steps in which L_D is below this
            part of -log D(x'). Defaults to 0.1; 0 for no rest.
        seed: of the noise, which depends on the step of the optimizer besides. Defaults to 0.

    Example:

    >>> trainer = FeatureInverterGAN(generator, feature_encoder, code_encoder, discriminator)
    >>> trainer.compile(keras.optimizers.Adam(1e-3, beta_1=0.5))
    >>> history = trainer.fit(images, epochs=50)
    >>> encoder = keras.Sequential([feature_encoder, code_encoder])
    >>> samples = ppgn(goal, generator, encoder=encoder, epsilon1=0.1, epsilon3=0.01)

    Reference:
        Nguyen et al. (2016), section 3, arxiv.org/abs/1612.00005
    """

    def __init__(
        self,
        model,
        feature_encoder,
        code_encoder,
        discriminator,
        image_weight=1.0,
        feature_weight=1.0,
        code_weight=1.0,
        adversarial_weight=1.0,
        code_noise=0.0,
        image_noise=0.0,
        feature_noise=0.0,
        discriminator_rest=0.1,
        seed=0,
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        _check_networks(model, feature_encoder, code_encoder, discriminator)
        self.feature_encoder = feature_encoder
        self.code_encoder = code_encoder
        self.discriminator = discriminator
        self.image_weight = image_weight
        self.feature_weight = feature_weight
        self.code_weight = code_weight
        self.adversarial_weight = adversarial_weight
        self.code_noise = code_noise
        self.image_noise = image_noise
        self.feature_noise = feature_noise
        self.discriminator_rest = discriminator_rest
        self.seed = seed
        for name in _OPTIONS:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"`{name}` must be a number of at least 0. Received: {value!r}")
        self.trackers = {name: keras.metrics.Mean(name=name) for name in _TERMS}
        self.build(feature_encoder.input_shape)

    def call(self, inputs, training=None):
        codes = self.code_encoder(self.feature_encoder(inputs, training=False), training=False)
        return self.model(codes, training=training)

    @property
    def trainable_variables(self):
        """Those of the generator and the discriminator: the encoders are not trained."""
        return [*self.model.trainable_variables, *self.discriminator.trainable_variables]

    @property
    def trainable_weights(self):
        return self.trainable_variables

    def train_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        seed = _seed_of_step(self.seed, self.optimizer.iterations)
        with tf.GradientTape(persistent=True) as tape:
            losses, terms = self._loss_terms(x, sample_weight, seed, training=True)
            scaled = [self.optimizer.scale_loss(loss / num_replicas()) for loss in losses]
        generator = self.model.trainable_variables
        discriminator = self.discriminator.trainable_variables
        awake = self._discriminator_awake(terms)
        gradients = [
            *tape.gradient(scaled[0], [weight.value for weight in generator]),
            *(
                gradient * tf.cast(awake, gradient.dtype)
                for gradient in tape.gradient(scaled[1], [each.value for each in discriminator])
            ),
        ]
        self.optimizer.apply_gradients(zip(gradients, generator + discriminator, strict=True))
        return self._update_metrics(losses[0], terms, x)

    def test_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        seed = tf.constant([self.seed, -1])
        losses, terms = self._loss_terms(x, sample_weight, seed, training=False)
        return self._update_metrics(losses[0], terms, x)

    def _loss_terms(self, x, sample_weight, seed, training):
        """[L_G, L_D] and a dict of their terms, means over this replica's rows."""
        features = self.feature_encoder(x, training=False)
        codes = self.code_encoder(features, training=False)
        seeds = tf.unstack(tf.random.split(seed, 3, alg="philox"))
        drawn = self.model(_noisy(codes, self.code_noise, seeds[0]), training=training)
        seen = self.feature_encoder(_noisy(drawn, self.image_noise, seeds[1]), training=False)
        again = self.code_encoder(_noisy(seen, self.feature_noise, seeds[2]), training=False)
        real, fake = (_logits(self.discriminator(each, training=training)) for each in (x, drawn))
        rows = {
            "image": _squared_distance(x, drawn),
            "feature": _squared_distance(features, seen),
            "code": _squared_distance(codes, again),
            "adversarial": tf.math.softplus(-fake),
            "discriminator": tf.math.softplus(-real) + tf.math.softplus(fake),
        }
        if sample_weight is not None:
            row_weight = tf.reshape(_full(sample_weight), [-1])
            rows = {name: row_weight * values for name, values in rows.items()}
        terms = {name: tf.reduce_mean(values) for name, values in rows.items()}
        weighted = [getattr(self, f"{name}_weight") * terms[name] for name in _TERMS[:4]]
        penalties = [
            [_full(loss) for loss in network.losses] for network in (self.model, self.discriminator)
        ]
        generator = tf.add_n(weighted + penalties[0])
        return [generator, tf.add_n([terms["discriminator"], *penalties[1]])], terms

    def _discriminator_awake(self, terms):
        """Whether D learns in this step, the same on all replicas."""
        own, adversarial = sum_over_replicas([terms["discriminator"], terms["adversarial"]])
        return own >= self.discriminator_rest * adversarial

    def _update_metrics(self, loss, terms, x):
        for tracker, value in (
            (self._loss_tracker, loss),
            *((self.trackers[name], value) for name, value in terms.items()),
        ):
            tracker.update_state(value, sample_weight=tf.shape(x)[0])
        return self.get_metrics_result()

    def get_config(self):
        networks = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in ("feature_encoder", "code_encoder", "discriminator")
        }
        options = {name: getattr(self, name) for name in _OPTIONS}
        return {**super().get_config(), **networks, **options, "seed": self.seed}

    @classmethod
    def from_config(cls, config):
        networks = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("feature_encoder", "code_encoder", "discriminator")
        }
        return super().from_config({**config, **networks})


def _check_networks(generator, feature_encoder, code_encoder, discriminator):
    networks = {
        "model": generator,
        "feature_encoder": feature_encoder,
        "code_encoder": code_encoder,
        "discriminator": discriminator,
    }
    for name, network in networks.items():
        if not isinstance(network, keras.Model) or not network.built:
            raise TypeError(f"`{name}` must be a built keras.Model. Received: {network!r}")
    chain = ("feature_encoder", "code_encoder", "model", "feature_encoder")
    for first, second in itertools.pairwise(chain):
        given, taken = networks[first].output_shape, networks[second].input_shape
        if not tf.TensorShape(given).is_compatible_with(taken):
            raise ValueError(
                f"`{second}` must take what `{first}` gives, {given}. Received: it takes {taken}"
            )
    given, logits = generator.output_shape, discriminator.output_shape
    fits = tf.TensorShape(given).is_compatible_with(discriminator.input_shape)
    if not fits or tuple(logits[1:]) != (1,):
        raise ValueError(
            f"`discriminator` must lead from images {given} to [batch, 1] logits. Received: from "
            f"{discriminator.input_shape} to {logits}"
        )


def _noisy(values, deviation, seed):
    if not deviation:
        return values
    noise = tf.random.stateless_normal(tf.shape(values), seed, dtype=values.dtype, alg="philox")
    return values + deviation * noise


def _squared_distance(a, b):
    """Sum over the values of each row."""
    squared = tf.square(_full(a) - _full(b))
    return tf.reduce_sum(squared, axis=range(1, squared.shape.rank))


def _logits(outputs):
    return tf.squeeze(_full(outputs), -1)


def _full(x):
    """`x` in the precision of losses, which no 16 bits have."""
    return tf.cast(x, keras.config.floatx())


def _seed_of_step(seed, iterations):
    """int32 [2], another for each step and each replica."""
    context = tf.distribute.get_replica_context()
    replica = 0 if context is None else context.replica_id_in_sync_group
    return tf.stack([seed, tf.cast(iterations.value, tf.int32) * 4096 + replica])
