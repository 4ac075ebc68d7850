"""Latent sweeps: what a decoder draws, and a classifier says of it, as one factor is moved.

    x_ks = g(z + offset_s e_k),    p_ks = classifier(x_ks)

For a generative model with causal factors (`kzoo.training.GenerativeCausalExplainer`) the sweeps of
these change the class, and those of the others keep it.

"Generative causal explanations of black-box classifiers", O'Shaughnessy, Canal, Connor, Rozell,
Davenport, 2020, arXiv 2006.13913; section 5, its figures of global and local explanations.
"""

import keras
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from kzoo.ops.information_flow import class_log_probabilities
from kzoo.papers import Paper, component
from kzoo.plots import picture

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

_CELL_INCHES = 1.0


@component(PAPER, not_served="it needs a decoder besides the model")
def latent_sweep(
    classifier, decoder, latents, offsets=(-3, -2, -1, 0, 1, 2, 3), factors=None, from_logits=False
):
    """Moves the factors of latent vectors, one at a time, and classifies what is decoded.

    Args:
        classifier: a Keras model from inputs to [batch, classes] probabilities, or [batch, 1].
        decoder: a Keras model from latent vectors [batch, d] to inputs.
        latents: [batch, d], such as the means that an encoder gives for some inputs.
        offsets: [steps], what is added to a factor. Defaults to -3 to 3 standard deviations of a
            standard normal prior.
        factors: numbers of the factors to sweep, from 0 on. None for all.
        from_logits: whether the classifier gives logits. Defaults to False.

    Returns:
        A dict of NumPy arrays:

        * "decoded": [batch, factors, steps, *input shape].
        * "probabilities": [batch, factors, steps, classes], of at least two classes.
        * "classes": int [batch, factors, steps], the most likely ones.
        * "flips": bool [batch, factors], whether the class changes anywhere along the sweep.
        * "offsets": [steps]; "factors": int [factors].

    Reference:
        O'Shaughnessy et al. (2020), section 5, arxiv.org/abs/2006.13913
    """
    latents, offsets = _array("latents", latents, 2), _array("offsets", offsets, 1)
    size = latents.shape[1]
    factors = np.arange(size) if factors is None else np.atleast_1d(np.asarray(factors))
    is_known = np.issubdtype(factors.dtype, np.integer) and factors.ndim == 1 and factors.size
    if not is_known or factors.min() < 0 or factors.max() >= size:
        raise ValueError(
            f"`factors` must be integers from 0 to {size - 1}. Received: {factors.tolist()}"
        )
    steps = offsets[:, np.newaxis] * np.eye(size)[factors][:, np.newaxis]
    moved = latents[:, np.newaxis, np.newaxis] + steps
    shape = moved.shape[:3]
    decoded = decoder.predict(moved.reshape(-1, size).astype(keras.config.floatx()), verbose=0)
    outputs = classifier.predict(decoded, verbose=0)
    probabilities = np.exp(class_log_probabilities(outputs, from_logits))
    probabilities = probabilities.reshape(*shape, -1)
    classes = probabilities.argmax(-1)
    return {
        "decoded": decoded.reshape(*shape, *decoded.shape[1:]),
        "probabilities": probabilities,
        "classes": classes,
        "flips": (classes != classes[..., :1]).any(-1),
        "offsets": offsets,
        "factors": factors,
    }


@component(PAPER, not_served="it draws a picture")
def latent_sweep_sheet(sweep, factor=None, row=None, titles=None, class_names=None):
    """The pictures of a sweep, each in a frame of its class's colour and with its probability.

    Args:
        sweep: what `latent_sweep` returns, of images.
        factor: number of the factor whose sweeps are drawn, a row for each latent vector.
        row: number of the latent vector whose sweeps are drawn, a row for each factor. One of the
            two must be given.
        titles: captions of the rows. None for the number of the factor, or none.
        class_names: for the captions. None for numbers.

    Returns:
        `matplotlib.figure.Figure`

    Reference:
        O'Shaughnessy et al. (2020), its figures 3 to 5, arxiv.org/abs/2006.13913
    """
    chosen = _chosen(sweep, factor, row)
    decoded, probabilities = sweep["decoded"][chosen], sweep["probabilities"][chosen]
    if titles is None:
        swept = [f"factor {number}" for number in sweep["factors"]]
        titles = swept if row is not None else [""] * len(decoded)
    if len(titles) != len(decoded):
        raise ValueError(
            f"`titles` must have one entry for each of {len(decoded)} rows. Received: {len(titles)}"
        )
    classes = probabilities.shape[-1]
    class_names = range(classes) if class_names is None else class_names
    if len(class_names) != classes:
        raise ValueError(f"`class_names` must name {classes} classes. Received: {len(class_names)}")
    rows, columns = decoded.shape[:2]
    figure = Figure(
        figsize=(_CELL_INCHES * columns + 0.7, 1.25 * _CELL_INCHES * rows + 0.3),
        layout="constrained",
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for index, axis in np.ndenumerate(axes):
        _show(axis, decoded[index], probabilities[index], class_names)
    for axis, title in zip(axes[:, 0], titles, strict=True):
        axis.set_ylabel(title, fontsize=8)
    for axis, offset in zip(axes[0], sweep["offsets"], strict=True):
        axis.set_title(f"{offset:+g}", fontsize=9)
    return figure


def _array(name, values, rank):
    values = np.asarray(values, float)
    if values.ndim != rank or not values.size:
        shape = "[batch, factors]" if rank == 2 else "[steps]"
        raise ValueError(f"`{name}` must have the shape {shape}. Received: {list(values.shape)}")
    return values


def _chosen(sweep, factor, row):
    """The index into a sweep's arrays that leaves [rows, steps, ...]."""
    if (factor is None) == (row is None):
        raise ValueError(
            f"One of `factor` and `row` must be given. Received: factor={factor}, row={row}"
        )
    if row is not None:
        batch = len(sweep["classes"])
        if not 0 <= row < batch:
            raise ValueError(f"`row` must be from 0 to {batch - 1}. Received: {row!r}")
        return row
    factors = sweep["factors"].tolist()
    if factor not in factors:
        raise ValueError(f"`factor` must be one of those swept, {factors}. Received: {factor!r}")
    return slice(None), factors.index(factor)


def _show(axis, image, probabilities, class_names):
    label = int(probabilities.argmax())
    color = matplotlib.colormaps["tab10"](label % 10)
    axis.imshow(picture(image), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(f"{class_names[label]}: {probabilities[label]:.2f}", fontsize=7, labelpad=2)
    for spine in axis.spines.values():
        spine.set(linewidth=3, color=color)
