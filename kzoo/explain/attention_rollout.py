"""Attention rollout: how much of each input token is in a token after all attention layers.

    A~_l = normalise_rows(0.5 W_l + 0.5 I),    W_l = mean over heads of the attention
    A_l = A~_l A_{l-1},    A_0 = I;    the row of the class token is the map       (equation 1)

"Quantifying Attention Flow in Transformers", Abnar, Zuidema, 2020, arXiv 2005.00928; section 3,
with raw attention as the baseline it is compared to.

Deviations: none. The row of another token, or the mean over all, may be read; the paper's row
normalisation changes nothing but where a mask leaves a token without any attention.
"""

import math

import keras
import tensorflow as tf

from kzoo.explain.activation_map import resize_map
from kzoo.explain.attention import AttentionExplainer
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Quantifying Attention Flow in Transformers",
    authors=("Samira Abnar", "Willem Zuidema"),
    year=2020,
    arxiv="2005.00928",
)


@component(PAPER, not_served="it is a function of tensors that explainers are made of")
def rollout(attentions, normalize=True):
    """The product of (A + I) over the attention layers, the last on the left.

    Args:
        attentions: tensors [batch, tokens, tokens], one for each layer in the order they are
            called; row t holds what token t takes from each.
        normalize: whether the rows of each A + I are divided by their sums, as for rollout.
            Defaults to True.

    Returns:
        float tensor [batch, tokens, tokens]; row t holds the share of each input token in t.
    """
    joint = None
    for attention in attentions:
        if attention.shape[-1] != attention.shape[-2]:
            raise ValueError(
                "Rollout is for self-attention, of as many tokens as sources in every layer. "
                f"Received attention of shape {attention.shape}."
            )
        mixed = attention + tf.eye(tf.shape(attention)[-1], dtype=attention.dtype)
        if normalize:
            mixed /= tf.reduce_sum(mixed, -1, keepdims=True)
        joint = mixed if joint is None else mixed @ joint
    return joint


class TokenMap(AttentionExplainer):
    """Base of the explainers that give each token its part, by a matrix [tokens, tokens].

    A subclass implements `token_matrix`.

    Args:
        model: see `AttentionExplainer`, as is `score`.
        token: the token whose row is read: the index of the class token (0 for the first, -1 for
            the last, as of a causal model), or "mean" for the mean over all, for models that pool
            them. Defaults to 0.
        grid: (height, width) of the patches of an image, which are the last height * width tokens;
            None for tokens as they are. Defaults to "auto": for models with one input of the
            shape [batch, height, width, channels] the grid of the input's proportions that has as
            many patches as there are tokens, the class token aside; None for other models.
        upsample: whether a map is resized bilinearly to the height and width of the image.
            Defaults to True.
    """

    def __init__(self, model, token=0, grid="auto", upsample=True, score=None):
        super().__init__(model, score=score)
        if token != "mean" and not isinstance(token, int):
            raise ValueError(f'`token` must be an index or "mean". Received: {token!r}')
        if grid not in ("auto", None) and not _is_grid(grid):
            raise ValueError(f'`grid` must be (height, width), "auto" or None. Received: {grid!r}')
        self.token = token
        self.grid = grid if grid in ("auto", None) else tuple(grid)
        self.upsample = bool(upsample)

    def token_matrix(self, values, target, inputs):
        """Returns (matrix [batch, tokens, tokens], what `scores` returns)."""
        raise NotImplementedError

    def attribute(self, values, target, inputs):
        matrix, scored = self.token_matrix(values, target, inputs)
        tokens = tf.reduce_mean(matrix, axis=1) if self.token == "mean" else matrix[:, self.token]
        return {"attributions": self._as_map(tokens, inputs), **scored}

    def _as_map(self, tokens, inputs):
        """[batch, tokens] -> the same, or [batch, height, width] where patches are known."""
        is_image = not keras.tree.is_nested(inputs) and inputs.shape.rank == 4
        if self.grid is None or (self.grid == "auto" and not is_image):
            return tokens
        grid = self._infer_grid(tokens.shape[1], inputs) if self.grid == "auto" else self.grid
        if tokens.shape[1] is not None and tokens.shape[1] < math.prod(grid):
            raise ValueError(
                f"`grid` must have at most the {tokens.shape[1]} tokens of the attention. "
                f"Received: {grid}"
            )
        patches = tf.reshape(tokens[:, -math.prod(grid) :], [-1, *grid])
        if self.upsample and is_image:
            return resize_map(patches, tf.shape(inputs)[1:3])
        return patches

    def _infer_grid(self, tokens, images):
        """(height, width) of the patches, in the proportions of the image."""
        height, width = images.shape[1:3]
        if None not in (tokens, height, width):
            patches = tokens if self.token == "mean" else tokens - 1
            rows = round(math.sqrt(patches * height / width))
            if rows and rows * width == patches / rows * height:
                return rows, patches // rows
        raise ValueError(
            f"The {tokens} tokens of the attention are no grid of patches of images of the shape "
            f"{images.shape}" + ("" if self.token == "mean" else ", with one class token besides")
            + ". Pass `grid`, the (height, width) of the patches, or None for tokens as they are."
        )  # fmt: skip

    def get_config(self):
        grid = list(self.grid) if isinstance(self.grid, tuple) else self.grid
        return {"token": self.token, "grid": grid, "upsample": self.upsample}


@component(PAPER)
class AttentionRollout(TokenMap):
    """What the class token takes from each token through all layers; the same for every class.

    Args:
        model: see `TokenMap`, as are `token`, `grid`, `upsample` and `score`.

    Returns (when called): `attributions`, at least 0: the map [batch, height, width], or [batch,
    tokens] with a sum of 1; `score`, `target`, `predictions`.

    Example:

    >>> AttentionRollout(vision_transformer)(images)["attributions"].shape == images.shape[:-1]
    True

    Reference:
        Abnar and Zuidema (2020), equation 1, arxiv.org/abs/2005.00928
    """

    def token_matrix(self, values, target, inputs):
        attentions, scored = self.attention(values, target, inputs)
        return rollout([tf.reduce_mean(each, axis=1) for each in attentions]), scored


@component(PAPER)
class RawAttention(TokenMap):
    """The attention of one layer, averaged over its heads; the same for every class.

    Args:
        model: see `TokenMap`, as are `token`, `grid`, `upsample` and `score`.
        call: which call of an attention layer, counted from the first, or from the last by
            negative numbers. Defaults to -1, the last.

    Returns (when called): as of `AttentionRollout`.

    Reference:
        Abnar and Zuidema (2020), section 2, arxiv.org/abs/2005.00928
    """

    def __init__(self, model, call=-1, token=0, grid="auto", upsample=True, score=None):
        super().__init__(model, token, grid, upsample, score=score)
        if not isinstance(call, int):
            raise ValueError(f"`call` must be an integer. Received: {call!r}")
        self.call = call

    def token_matrix(self, values, target, inputs):
        attentions, scored = self.attention(values, target, inputs)
        if not -len(attentions) <= self.call < len(attentions):
            raise ValueError(
                f"`call` must be one of the {len(attentions)} calls of attention layers. "
                f"Received: {self.call}"
            )
        return tf.reduce_mean(attentions[self.call], axis=1), scored

    def get_config(self):
        return {"call": self.call, **super().get_config()}


def _is_grid(grid):
    return (
        isinstance(grid, list | tuple)
        and len(grid) == 2
        and all(isinstance(n, int) and n > 0 for n in grid)
    )
