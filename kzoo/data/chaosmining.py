"""ChaosMining: data in which few features matter and it is known which.

    symbolic  y = f(x_1 .. x_k) + noise, and n further columns that play no part
    vision    a small picture of the class on a background that says nothing of it
    audio     one channel with the voice of the class among channels of noise

"ChaosMining: A Benchmark to Evaluate Post-Hoc Local Attribution Methods in Low SNR Environments",
Shi, Kan, Smucny, Davidson, 2024, arXiv 2406.12150. Its four conditions are random or structural
backgrounds (RB, SB) at fixed or random positions (FP, RP).

The paper takes CIFAR-10 on Flowers-102 and spoken commands among rainforest recordings; here
pictures, voices and backgrounds are arguments. Settings are those of the authors' code: features
are normal with standard deviation 0.33, clipped to [-1, 1], targets have noise of 0.01, channels of
noise are normal with 0.25, clipped; recordings are scaled by the 0.99 quantile of their magnitude.
"""

import numpy as np

from kzoo.data.formulas import FORMULAS, Formula
from kzoo.data.source import Source
from kzoo.papers import Paper, component

PAPER = Paper(
    title="ChaosMining: A Benchmark to Evaluate Post-Hoc Local Attribution Methods in Low SNR "
    "Environments",
    authors=("Ge Shi", "Ziwen Kan", "Jason Smucny", "Ian Davidson"),
    year=2024,
    arxiv="2406.12150",
)

_POSITIONS = ("fixed", "random")
_LOUD = 0.99


@component(PAPER)
def chaosmining_symbolic(
    formula,
    num_irrelevant=100,
    num_examples=10_000,
    scale=0.33,
    clip=1.0,
    noise=0.01,
    seed=0,
    **source,
):
    """A regression of a formula's variables among columns that play no part.

    Args:
        formula: a `Formula`, or the number of one of `FORMULAS`.
        num_irrelevant: number of further columns, of the same distribution.
        num_examples: number of rows.
        scale: standard deviation of the features.
        clip: largest magnitude of a feature; None for any.
        noise: standard deviation of the noise on the targets.
        seed: seed of the rows.
        source: further arguments of `Source`, such as `split`.

    Returns:
        (source, relevant): `Source` of float32 [num_examples, columns], the formula's variables
        first, with float32 targets [num_examples]; and bool [num_examples, columns].

    Reference:
        Shi et al. (2024), section 3, arxiv.org/abs/2406.12150
    """
    formula = formula if isinstance(formula, Formula) else _formula(formula)
    for name, value in (("num_irrelevant", num_irrelevant), ("scale", scale), ("noise", noise)):
        if not value >= 0:
            raise ValueError(f"`{name}` must be at least 0. Received: {value!r}")
    rng = np.random.default_rng(seed)
    columns = formula.num_features + num_irrelevant
    features = rng.normal(scale=scale, size=(num_examples, columns))
    if clip is not None:
        features = np.clip(features, -clip, clip)
    targets = formula(features[:, : formula.num_features]) + rng.normal(
        scale=noise, size=num_examples
    )
    relevant = np.arange(columns) < formula.num_features
    source = Source(
        features.astype(np.float32),
        targets.astype(np.float32),
        **{"name": "chaosmining_symbolic", **source},
    )
    return source, np.broadcast_to(relevant, features.shape)


@component(PAPER)
def chaosmining_vision(
    foregrounds, labels, size=224, background=None, position="random", seed=0, **source
):
    """Pictures of a class on a larger background that says nothing of it, and where they are.

    Args:
        foregrounds: [num_examples, height, width, channels], uint8, or floats in 0..1.
        labels: their classes, int [num_examples].
        size: height and width of the images.
        background: None for uniform noise, a value for each pixel and channel (RB); or images
            [num_backgrounds, size, size, channels], one of which is drawn for each example (SB).
        position: "fixed", in the middle (FP), or "random" (RP).
        seed: seed of backgrounds and positions.
        source: further arguments of `Source`, such as `split`.

    Returns:
        (source, relevant): `Source` of [num_examples, size, size, channels] of the dtype of the
        foregrounds, and bool [num_examples, size, size], true on the foreground.

    Reference:
        Shi et al. (2024), section 3, arxiv.org/abs/2406.12150
    """
    foregrounds = np.asarray(foregrounds)
    if foregrounds.ndim != 4 or max(foregrounds.shape[1:3]) > size:
        raise ValueError(
            "`foregrounds` must have the shape [num_examples, height, width, channels], no larger "
            f"than `size` {size}. Received: {list(foregrounds.shape)}"
        )
    _check_position(position)
    rng = np.random.default_rng(seed)
    count, height, width, channels = foregrounds.shape
    images = _backgrounds(rng, background, (count, size, size, channels), foregrounds.dtype)
    room = np.array([size - height, size - width])
    corners = np.tile(room // 2, (count, 1))
    if position == "random":
        corners = rng.integers(0, room + 1, (count, 2))
    rows = corners[:, :1] + np.arange(height)
    columns = corners[:, 1:] + np.arange(width)
    inside = np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    images[inside] = foregrounds
    relevant = np.zeros([count, size, size], bool)
    relevant[inside] = True
    return Source(images, labels, **{"name": "chaosmining_vision", **source}), relevant


@component(PAPER)
def chaosmining_audio(
    voices, labels, num_channels=10, background=None, position="random", noise=0.25, seed=0,
    **source,
):  # fmt: skip
    """Recordings of several channels, one of which is voiced, and which it is.

    Args:
        voices: [num_examples, length], in -1..1.
        labels: their classes, int [num_examples].
        num_channels: number of channels, the voiced one included.
        background: None for clipped normal noise (RB); or recordings [num_backgrounds, at least
            length], from which a piece is drawn for each channel (SB).
        position: of the voiced channel: "fixed", the first (FP), or "random" (RP).
        noise: standard deviation of the noise.
        seed: seed of noise and positions.
        source: further arguments of `Source`, such as `split`.

    Returns:
        (source, relevant): `Source` of float32 [num_examples, length, num_channels], and bool of
        that shape, true in the voiced channel.

    Reference:
        Shi et al. (2024), section 3, arxiv.org/abs/2406.12150
    """
    voices = np.asarray(voices, np.float32)
    if voices.ndim != 2:
        raise ValueError(
            f"`voices` must have the shape [num_examples, length]. Received: {list(voices.shape)}"
        )
    _check_position(position)
    rng = np.random.default_rng(seed)
    count, length = voices.shape
    if background is None:
        sound = np.clip(rng.normal(scale=noise, size=(count, length, num_channels)), -1, 1)
    else:
        sound = _pieces(rng, np.asarray(background, np.float32), count, length, num_channels)
    voiced = rng.integers(0, num_channels, count) if position == "random" else np.zeros(count, int)
    relevant = np.repeat((voiced[:, None] == np.arange(num_channels))[:, None], length, axis=1)
    features = np.where(relevant, voices[..., None], sound).astype(np.float32)
    return Source(features, labels, **{"name": "chaosmining_audio", **source}), relevant


def _formula(number):
    if not isinstance(number, int) or not 0 <= number < len(FORMULAS):
        raise ValueError(
            f"`formula` must be a Formula or a number in 0..{len(FORMULAS) - 1}. "
            f"Received: {number!r}"
        )
    return FORMULAS[number]


def _check_position(position):
    if position not in _POSITIONS:
        raise ValueError(
            f"`position` must be one of {', '.join(_POSITIONS)}. Received: {position!r}"
        )


def _backgrounds(rng, background, shape, dtype):
    """New images of the shape and dtype: noise, or drawn from those given."""
    if background is None:
        if np.issubdtype(dtype, np.integer):
            return rng.integers(0, 256, shape, dtype)
        return rng.random(shape).astype(dtype)
    background = np.asarray(background, dtype)
    if background.shape[1:] != shape[1:]:
        raise ValueError(
            f"`background` must have the shape [num_backgrounds, {', '.join(map(str, shape[1:]))}]."
            f" Received: {list(background.shape)}"
        )
    return background[rng.integers(0, len(background), shape[0])]


def _pieces(rng, recordings, count, length, num_channels):
    """[count, length, num_channels] of pieces of the recordings, scaled and clipped to -1..1."""
    if recordings.ndim != 2 or recordings.shape[1] < length:
        raise ValueError(
            f"`background` must have the shape [num_backgrounds, at least {length}]. "
            f"Received: {list(recordings.shape)}"
        )
    loud = np.quantile(np.abs(recordings), _LOUD, axis=1, keepdims=True)
    recordings = np.clip(recordings / np.where(loud > 0, loud, 1), -1, 1)
    which = rng.integers(0, len(recordings), (count, 1, num_channels))
    begin = rng.integers(0, recordings.shape[1] - length + 1, (count, 1, num_channels))
    return recordings[which, begin + np.arange(length)[:, None]]
