"""Plug & Play Generative Networks: samples of a class, drawn by a chain with a learned prior.

    h <- h + epsilon1 (R(h) - h) + epsilon2 d log p(y | G(h)) / dh + N(0, epsilon3^2)

R is a denoising autoencoder, so that R(h) - h is about sigma^2 d log p(h) / dh for the variance
sigma^2 of the noise that it was trained with (Alain and Bengio); sigma^2 is part of epsilon1. G is
a generator, p(y | x) the condition: any classifier, or unit of one, put in afterwards. The family:

    PPGN-x            no G: the chain runs on images, R denoises images
    DGN-AM            epsilon1 = epsilon3 = 0: gradient ascent through G
    PPGN-h            R denoises codes
    Joint PPGN-h      R(h) = E(G(h)) for the encoder E that G inverts

"Plug & Play Generative Networks: Conditional Iterative Generation of Images in Latent Space",
Nguyen, Clune, Bengio, Dosovitskiy, Yosinski, 2016, arXiv 1612.00005; equation 5 and section 3. G is
trained by `kzoo.training.FeatureInverterGAN`.

Open choices. The paper's step is the equation; the authors' code scales the sum of the three terms
to a mean absolute value, which is `step_size` here. As there, a chain begins at standard normal
codes and codes are clipped to a range, here only if asked for. Inpainting and captions need no
other sampler: they are conditions, an `Objective` with a function of one's own.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.graph import final_activation, input_structure, linear_output
from kzoo.explain.visualization.objectives import Objective, class_logit
from kzoo.explain.visualization.sheets import visualization_sheet
from kzoo.papers import Paper, component

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


@component(PAPER, not_served="it explains the model or a set, not one request")
def ppgn(
    objective,
    generator=None,
    *,
    denoiser=None,
    encoder=None,
    epsilon1=0.0,
    epsilon2=1.0,
    epsilon3=0.0,
    steps=200,
    save_every=None,
    chains=1,
    start=None,
    step_size=None,
    bounds=None,
    shape=None,
    seed=0,
    jit_compile=False,
):
    """Runs chains towards images that meet a condition and are likely under a prior.

    All chains run side by side, all steps in one `tf.while_loop`. Nothing is random but the start
    and the noise, which depend on `seed` alone. To sample from p(h) p(y | h) itself, let
    epsilon2 = epsilon3^2 / 2 and epsilon1 = epsilon2 / sigma^2, all small; a larger epsilon2 asks
    for clearer members of the class, a larger epsilon3 for more diverse samples.

    Args:
        objective: `Objective` that is log p(y | x) of images x, see `class_log_probability`; or
            any other, such as `neuron`, whose gradient then stands for that of the logarithm.
        generator: Keras model G from codes to the images that `objective` takes. None runs the
            chain on images.
        denoiser: Keras model R from noisy codes (images, if there is no `generator`) to clean ones.
        encoder: Keras model E from images to codes, for R(h) = E(G(h)), in place of `denoiser`.
        epsilon1: weight of the prior, at least 0; above it, R is needed. Defaults to 0.
        epsilon2: weight of the condition, at least 0. Defaults to 1.
        epsilon3: standard deviation of the noise of a step, at least 0. Defaults to 0.
        steps: number of steps. Defaults to 200.
        save_every: steps from one image of `chain` to the next, a divisor of `steps`. None keeps
            the last image only.
        chains: number of chains for each target of `objective`. Defaults to 1.
        start: codes at which to begin: one, or one for each chain. None draws them from a standard
            normal distribution.
        step_size: mean absolute value to which each chain's step, noise included, is scaled, as in
            the authors' code. None takes the steps of the equation.
        bounds: (lowest, highest) value of a code, to which it is clipped after each step. None for
            none.
        shape: of a code, for models whose input leaves it open. None asks the model.
        seed: int.
        jit_compile: whether to compile the loop with XLA, which draws other noise from the same
            seed. Defaults to False.

    Returns:
        dict, of n = `chains` times the number of targets chains, those of a target in a row:

        * "images": [n, ...], of the last codes; "codes": [n, ...].
        * "activations": [steps + 1, n], the objective before each step and of the last images; its
          exponential is the probability of the class, for `class_log_probability`.
        * "chain": [steps / save_every, n, ...], the images after every `save_every` steps.
        * "targets": int32 [n], the position of each chain's target in `objective`.

        In float32; in float64 for a float64 model.

    Raises:
        ValueError: for an argument out of its range, a prior that is missing, given twice or of
            another shape than the codes.

    Example:

    >>> goal = class_log_probability(classifier, range(10))
    >>> result = ppgn(goal, generator, encoder=encoder, epsilon1=0.1, epsilon3=0.02, chains=8)

    Reference:
        Nguyen et al. (2016), equation 5 and section 3, arxiv.org/abs/1612.00005
    """
    epsilons = {"epsilon1": epsilon1, "epsilon2": epsilon2, "epsilon3": epsilon3}
    counts = {"steps": steps, "save_every": save_every or steps, "chains": chains}
    _check_ranges(epsilons, counts, step_size, bounds)
    _check_prior(generator, denoiser, encoder, epsilon1)
    targets = tf.repeat(tf.range(len(objective)), chains)
    start = _first_codes(objective, generator, start, shape, len(targets), seed)
    every = counts["save_every"]
    decode = _in_dtype(generator, objective.dtype)
    denoise = _in_dtype(denoiser or encoder, objective.dtype)

    def change(step, codes):
        """What a step adds to the codes, and the objective before it."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(codes)
            images = decode(codes)
            activations = objective(images, targets)
        total = epsilon2 * _gradient(tape, activations, codes)
        if epsilon1:
            denoised = denoise(images if encoder is not None else codes)
            total += epsilon1 * (_same_shape(denoised, codes) - codes)
        if epsilon3:
            total += epsilon3 * _noise(codes, [seed, step])
        return total if step_size is None else step_size * _unit_mean(total), activations

    def run(codes):
        codes, history, chain = _run_chains(codes, change, decode, bounds, steps, every)
        last = objective(chain[-1], targets)
        return {"codes": codes, "activations": tf.concat([history, [last]], 0), "chain": chain}

    start = tf.constant(start, objective.dtype)
    traced = tf.function(run, autograph=False, jit_compile=jit_compile)
    result = traced.get_concrete_function(start)(start)
    return {"images": result["chain"][-1], **result, "targets": targets}


def class_log_probability(model, classes):
    """log p(y | x) of a class: the condition of a class-conditional sampler.

    Unlike the logit it stops growing where the class is certain.

    Args:
        model: classifier, see `Objective`; its output is [batch, classes], of a softmax, logits of
            one, or sigmoids.
        classes: int, or list of ints.
    """
    names = class_logit(model, classes).names
    classes = np.reshape(classes, -1)
    sigmoid = getattr(final_activation(model), "__name__", "") == "sigmoid"

    def activation(images, target):
        with linear_output(model):
            logits = model(images, training=False)
        if not tf.is_tensor(logits) or logits.shape.rank != 2 or classes.max() >= logits.shape[1]:
            raise ValueError(
                "`classes` must be columns of the model's one output [batch, classes]. Received: "
                f"{classes.tolist()} for {keras.tree.map_structure(lambda x: x.shape, logits)}"
            )
        turn = tf.math.log_sigmoid if sigmoid else tf.nn.log_softmax
        log_p = turn(tf.cast(logits, images.dtype))
        return tf.gather(log_p, tf.gather(classes, target), batch_dims=1)

    return Objective(model, activation, names)


def ppgn_sheet(result, chains=None, log_probabilities=True, **options):
    """A sheet of chains: a row for each, its images from left to right.

    Args:
        result: what `ppgn` returns, with `save_every`, of images [height, width, 1 or 3].
        chains: positions of the chains to show, in 0 to n - 1. None for all.
        log_probabilities: whether the objective is a logarithm, as of `class_log_probability`: the
            captions are then probabilities, otherwise the activations. Defaults to True.
        options: of `visualization_sheet`.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: for a chain that is not there, or results that are no images.
    """
    chain = np.asarray(result["chain"])
    saved, count = chain.shape[:2]
    chains = np.arange(count) if chains is None else np.asarray(chains)
    if chains.ndim != 1 or not len(chains) or chains.min() < 0 or chains.max() >= count:
        raise ValueError(f"`chains` must be positions in 0..{count - 1}. Received: {chains}")
    activations = np.asarray(result["activations"])
    values = activations[(len(activations) - 1) // saved :: (len(activations) - 1) // saved]
    values = np.exp(values) if log_probabilities else values
    images = np.swapaxes(chain, 0, 1)[chains].reshape(-1, *chain.shape[2:])
    captions = [f"{value:.2f}" for value in values.T[chains].ravel()]
    return visualization_sheet(images, captions, columns=saved, **{"stretch": False} | options)


def _run_chains(codes, change, decode, bounds, steps, every):
    """All steps from the first codes on.

    Returns:
        the last codes [n, ...], the activations [steps, n] before each step, and the images
        [steps / every, n, ...] after each `every` steps.
    """

    def move(step, codes, history):
        added, activations = change(step, codes)
        codes = codes + added
        codes = codes if bounds is None else tf.clip_by_value(codes, *bounds)
        return step + 1, codes, history.write(step, activations)

    def move_and_save(index, codes, history, chain):
        end = (index + 1) * every
        _, codes, history = tf.while_loop(
            lambda step, *_: step < end,
            move,
            (index * every, codes, history),
            maximum_iterations=every,
        )
        return index + 1, codes, history, chain.write(index, decode(codes))

    saved = steps // every
    history = tf.TensorArray(codes.dtype, steps, element_shape=[codes.shape[0]])
    _, codes, history, chain = tf.while_loop(
        lambda index, *_: index < saved,
        move_and_save,
        (0, codes, history, tf.TensorArray(codes.dtype, saved)),
        maximum_iterations=saved,
    )
    return codes, history.stack(), chain.stack()


def _noise(codes, seed):
    return tf.random.stateless_normal(codes.shape, seed, dtype=codes.dtype, alg="philox")


def _in_dtype(model, dtype):
    """The model as it predicts, a function that returns tensors of `dtype`; None is identity."""
    if model is None:
        return lambda values: values
    return lambda values: tf.cast(model(values, training=False), dtype)


def _gradient(tape, activations, codes):
    gradient = tape.gradient(activations, codes)
    if gradient is None:
        raise ValueError("The objective has no gradient with respect to the codes.")
    return gradient


def _unit_mean(values):
    """Each row divided by the mean of its absolute values; zeros stay zeros."""
    mean = tf.reduce_mean(tf.abs(values), axis=range(1, values.shape.rank), keepdims=True)
    return tf.math.divide_no_nan(values, mean)


def _same_shape(denoised, codes):
    if not denoised.shape.is_compatible_with(codes.shape):
        raise ValueError(
            f"The prior must return codes of the shape {codes.shape}. Received: {denoised.shape}"
        )
    return denoised


def _first_codes(objective, generator, start, shape, count, seed):
    """The codes at which the chains begin, an array [count, ...]."""
    known = objective.input_shape if generator is None else _input_shape(generator)
    shape = known if shape is None else tuple(shape)
    if shape is None or None in shape:
        raise ValueError("`shape` of a code is needed: the model leaves it open.")
    if start is None:
        return np.random.default_rng(seed).normal(size=[count, *shape])
    start = np.asarray(start, "float64")
    if start.shape not in (shape, (count, *shape)):
        raise ValueError(
            f"`start` must be one code of shape {list(shape)} or one for each of the {count} "
            f"chains. Received the shape {list(start.shape)}"
        )
    return np.broadcast_to(start, [count, *shape])


def _input_shape(generator):
    known = input_structure(generator)
    if keras.tree.is_nested(known) and known is not None:
        raise ValueError("`generator` must have one input, the code.")
    return None if known is None else tuple(known.shape[1:])


def _check_ranges(epsilons, counts, step_size, bounds):
    for name, value in epsilons.items():
        if not value >= 0:
            raise ValueError(f"`{name}` must be at least 0. Received: {value!r}")
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
    if counts["steps"] % counts["save_every"]:
        raise ValueError(
            f"`save_every` must divide `steps`, {counts['steps']}. Received: {counts['save_every']}"
        )
    if step_size is not None and not step_size > 0:
        raise ValueError(f"`step_size` must be above 0. Received: {step_size!r}")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"`bounds` must be (lowest, highest). Received: {bounds!r}")


def _check_prior(generator, denoiser, encoder, epsilon1):
    if denoiser is not None and encoder is not None:
        raise ValueError("Only one of `denoiser` and `encoder` can be the prior. Received both.")
    if encoder is not None and generator is None:
        raise ValueError("`encoder` needs the `generator` that it belongs to. Received None.")
    if epsilon1 and denoiser is None and encoder is None:
        raise ValueError(f"`epsilon1` needs a `denoiser` or an `encoder`. Received: {epsilon1!r}")
