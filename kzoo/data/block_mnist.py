"""BlockMNIST: images of which it is known where the discriminative part is.

    image = a signal block, a picture of the class, and a null block without any, one above the
            other in random order

The simplified version is a table of d blocks of which one in the first half holds the signal:

    x = [eta g_1, ..., y u + eta g_j, ..., eta g_d],   y = +-1,   j uniform in 1..d/2

"Do Input Gradients Highlight Discriminative Features?", Shah, Jain, Netrapalli, 2021, arXiv
2102.12781; sections 4 and 5.

Open choices: the pictures are an argument, MNIST or scikit-learn's digits; the null block is a
hollow square unless it is given; the g_j are uniform in the unit ball and u, of length 1, has equal
entries unless it is given.
"""

import numpy as np

from kzoo.data.source import Source
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Do Input Gradients Highlight Discriminative Features?",
    authors=("Harshay Shah", "Prateek Jain", "Praneeth Netrapalli"),
    year=2021,
    arxiv="2102.12781",
)

_POSITIONS = ("random", "top", "bottom")


@component(PAPER)
def block_mnist(images, labels, null=None, position="random", seed=0, **source):
    """Images of a signal block and a null block, and where the signal is.

    Args:
        images: signal blocks [num_examples, height, width] or [..., channels], in 0..1.
        labels: their classes, int [num_examples].
        null: the null block: an image of the shape of one signal block, or several of them
            [num_nulls, ...], one of which is drawn for each example whatever its class. None for
            a hollow square.
        position: of the signal block: "random", "top" (the paper's BlockMNIST-Top) or "bottom".
        seed: seed of the positions and of the drawn nulls.
        source: further arguments of `Source`, such as `split`.

    Returns:
        (source, signal): `Source` of float32 [num_examples, 2 height, width, channels], and bool
        [num_examples, 2 height, width], true in the signal block.

    Example:

    >>> digits = load("digits")
    >>> source, signal = block_mnist(digits.features, digits.labels)
    >>> source.features.shape[1:]
    (16, 8, 1)

    Reference:
        Shah et al. (2021), section 4, arxiv.org/abs/2102.12781
    """
    images = np.asarray(images, np.float32)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4:
        raise ValueError(
            "`images` must have the shape [num_examples, height, width] or [num_examples, height, "
            f"width, channels]. Received: {list(images.shape)}"
        )
    if position not in _POSITIONS:
        raise ValueError(
            f"`position` must be one of {', '.join(_POSITIONS)}. Received: {position!r}"
        )
    rng = np.random.default_rng(seed)
    count, height, width, _ = images.shape
    nulls = _nulls(null, images.shape[1:])
    nulls = nulls[rng.integers(0, len(nulls), count)]
    on_top = rng.random(count) < 0.5 if position == "random" else np.full(count, position == "top")
    order = on_top[:, np.newaxis, np.newaxis, np.newaxis]
    blocks = np.where(order, images, nulls), np.where(order, nulls, images)
    signal = np.repeat(np.stack([on_top, ~on_top], axis=1), height, axis=1)
    signal = np.repeat(signal[:, :, np.newaxis], width, axis=2)
    source = {"name": "block_mnist", **source}
    return Source(np.concatenate(blocks, axis=1), labels, **source), signal


@component(PAPER)
def block_linear(
    num_examples, num_blocks=10, block_size=16, noise=0.1, direction=None, seed=0, **source
):
    """The simplified BlockMNIST: a signal direction in one of the first half of the blocks.

    Args:
        num_examples: number of examples.
        num_blocks: the paper's d, even. The second half never holds the signal.
        block_size: number of values of a block.
        noise: the paper's eta, at least 0.
        direction: u [block_size], scaled to length 1. None for equal entries.
        seed: seed of labels, positions and noise.
        source: further arguments of `Source`, such as `split`.

    Returns:
        (source, signal): `Source` of float32 [num_examples, num_blocks block_size] with classes 0
        and 1, for y = -1 and 1, and bool of that shape, true in the block of the signal.

    Reference:
        Shah et al. (2021), section 5, arxiv.org/abs/2102.12781
    """
    if num_blocks < 2 or num_blocks % 2:
        raise ValueError(f"`num_blocks` must be even and positive. Received: {num_blocks!r}")
    if not noise >= 0:
        raise ValueError(f"`noise` must be at least 0. Received: {noise!r}")
    direction = np.ones(block_size) if direction is None else np.asarray(direction, float)
    if direction.shape != (block_size,) or not np.linalg.norm(direction) > 0:
        raise ValueError(
            f"`direction` must be {block_size} numbers, not all 0. Received: {direction}"
        )
    rng = np.random.default_rng(seed)
    blocks = noise * _in_unit_ball(rng, (num_examples, num_blocks, block_size))
    labels = rng.integers(0, 2, num_examples)
    where = rng.integers(0, num_blocks // 2, num_examples)
    signs = 2.0 * labels[:, np.newaxis] - 1
    blocks[np.arange(num_examples), where] += signs * direction / np.linalg.norm(direction)
    signal = np.repeat(where[:, np.newaxis] == np.arange(num_blocks), block_size, axis=1)
    features = blocks.reshape(num_examples, -1).astype(np.float32)
    return Source(features, labels, **{"name": "block_linear", **source}), signal


def _nulls(null, shape):
    """The null blocks to choose from, float32 [num_nulls, height, width, channels]."""
    if null is None:
        return np.broadcast_to(_hollow_square(*shape[:2])[..., np.newaxis], (1, *shape))
    null = np.asarray(null, np.float32)
    if null.shape[-2:] == shape[:2] and shape[-1] == 1:
        null = null[..., np.newaxis]
    if null.shape == shape:
        null = null[np.newaxis]
    if null.ndim != 4 or null.shape[1:] != shape or not len(null):
        raise ValueError(
            f"`null` must be one image of the shape {list(shape)} or several. "
            f"Received: {list(null.shape)}"
        )
    return null


def _hollow_square(height, width):
    block = np.zeros([height, width], np.float32)
    side = max(min(height, width) // 2, 1)
    top, left = (height - side) // 2, (width - side) // 2
    line = max(side // 6, 1)
    block[top : top + side, left : left + side] = 1
    block[top + line : top + side - line, left + line : left + side - line] = 0
    return block


def _in_unit_ball(rng, shape):
    """Points that are uniform in the unit ball of the last axis."""
    normal = rng.normal(size=shape)
    directions = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    return directions * rng.random((*shape[:-1], 1)) ** (1 / shape[-1])
