"""The cross-stage-partial connection: a part of a stage's input goes around its blocks.

    x_0 = [x_0', x_0'']                           (split of the channels)
    x_k = the blocks of x_0''                     (residual, ResNeXt, Darknet, dense ...)
    x_T = w_T * x_k                               (partial transition)
    x_U = w_U * [x_0', x_T]                       (transition)

So the blocks work on fewer channels, and their gradients hold nothing of x_0'. w_U alone is
"fusion first" (of figure 3), w_T alone is "fusion last".

"CSPNet: A New Backbone that can Enhance Learning Capability of CNN", Wang, Liao, Yeh, Wu, Chen,
Hsieh, 2019, arXiv 1911.11929; section 3.1, equation 4, figures 2 and 3.

Open choice: the paper does not say which part its ratio gamma is. Here it is x_0', since in its
table 1 a larger gamma takes less computation.
"""

import keras

from kzoo.papers import Paper

PAPER = Paper(
    title="CSPNet: A New Backbone that can Enhance Learning Capability of CNN",
    authors=(
        "Chien-Yao Wang",
        "Hong-Yuan Mark Liao",
        "I-Hau Yeh",
        "Yueh-Hua Wu",
        "Ping-Yang Chen",
        "Jun-Wei Hsieh",
    ),
    year=2019,
    arxiv="1911.11929",
)


def cross_stage_partial(
    x, blocks, gamma=0.5, partial_transition=None, transition=None, shortcut=None, name=None
):
    """Leads a part of the channels around the blocks of a stage.

    Returns transition([shortcut(x'), partial_transition(blocks(x''))]) of x = [x', x''], where what
    is None is left out: without `partial_transition` it is the paper's fusion first, without
    `transition` its fusion last.

    Args:
        x: a Keras tensor, [batch, height, width, channels].
        blocks: function from x'' to the blocks' output, as are the other functions of tensors.
        gamma: the part of the channels that goes around the blocks, in [0, 1), rounded to whole
            channels. With 0 nothing does. Defaults to 0.5.
        partial_transition: w_T, of what comes from the blocks.
        transition: w_U, of both parts.
        shortcut: of x', where the others change the size of the maps.
        name: prefix of the name of the concatenation.

    Raises:
        ValueError: if no channel is left for one of the parts.

    Reference:
        Wang et al. (2019), section 3.1 and figure 3, arxiv.org/abs/1911.11929
    """
    around = _channels_around(gamma, x.shape[-1])
    if around:
        part, x = keras.ops.split(x, [around], axis=-1)
    x = blocks(x)
    if partial_transition is not None:
        x = partial_transition(x)
    if around:
        part = part if shortcut is None else shortcut(part)
        x = keras.layers.Concatenate(name=name and f"{name}_cross_stage_concat")([part, x])
    return x if transition is None else transition(x)


def _channels_around(gamma, channels):
    """The number of `channels` that go around the blocks.

    Raises:
        ValueError: if it leaves no channel for one of the parts.
    """
    if not isinstance(gamma, int | float) or not 0 <= gamma < 1:
        raise ValueError(f"`gamma` must be in [0, 1). Received: {gamma!r}")
    around = round(gamma * channels)
    if gamma and not 0 < around < channels:
        raise ValueError(
            f"`gamma` must leave a channel for either part; of {channels} channels it can be from "
            f"{1 / channels:.3g} to {1 - 1 / channels:.3g}. Received: {gamma}"
        )
    return around
