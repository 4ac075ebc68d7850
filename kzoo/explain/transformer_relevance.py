"""Relevance of tokens in a transformer: attention, weighted by its relevance and its gradient.

    A-_b = I + mean over heads of (dy_t/dA_b * R_b)^+                             (equation 13)
    C = A-_1 A-_2 ... A-_B, b = 1 next to the output; the class token's row       (equation 14)

A_b are the attention probabilities of block b, R_b is their relevance: 1 at the logit of class t,
handed down by the rules of `kzoo.explain.relevance_rules` (equations 2 to 9).

"Transformer Interpretability Beyond Attention Visualization", Chefer, Gur, Wolf, 2020, arXiv
2012.09838; section 3.3.

Without relevance, A-_b = I + mean over heads of (dy_t/dA_b * A_b)^+: "Generic Attention-model
Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers", Chefer, Gur, Wolf, 2021,
arXiv 2103.15679; equations 5 and 6, for self-attention.

Deviations: none. Open choices: rows are not normalised, as equation 13 has it (the authors' code
normalises them for BERT only); of a text, the class token keeps its own entry, which holds at
least the 1 of I (their code overwrites it by the smallest).
"""

import tensorflow as tf

from kzoo.explain.attention import emptied_by_calls, widened
from kzoo.explain.attention_rollout import TokenMap, rollout
from kzoo.explain.relevance_rules import check_relevance_model, relevance_rules
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Transformer Interpretability Beyond Attention Visualization",
    authors=("Hila Chefer", "Shir Gur", "Lior Wolf"),
    year=2020,
    arxiv="2012.09838",
)

GENERIC_PAPER = Paper(
    title="Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder "
    "Transformers",
    authors=("Hila Chefer", "Shir Gur", "Lior Wolf"),
    year=2021,
    arxiv="2103.15679",
)


class WeightedRollout(TokenMap):
    """Base of the rollouts of attention that is weighted for the class.

    A subclass implements `weighted_attention`.
    """

    def weighted_attention(self, values, target, inputs):
        """Returns (list of [batch, heads, tokens, tokens], what `scores` returns)."""
        raise NotImplementedError

    def token_matrix(self, values, target, inputs):
        weighted, scored = self.weighted_attention(values, target, inputs)
        positive = [tf.reduce_mean(tf.nn.relu(each), axis=1) for each in weighted]
        return rollout(positive, normalize=False), scored


@component(PAPER)
class TransformerRelevance(WeightedRollout):
    """Which tokens speak for a class, by the relevance and the gradient of all attention.

    For functional and Sequential models of Keras layers and operations, attention by
    keras.layers.MultiHeadAttention or GroupQueryAttention. Layers that compute with other layers in
    their own code are refused: relevance would be handed on wrongly without a notice. Two forward
    and two backward passes.

    Args:
        model: see `TokenMap`, as are `token`, `grid`, `upsample` and `score`.

    Returns (when called): `attributions`, at least 0: the map [batch, height, width], or [batch,
    tokens]; `score`, `target`, `predictions`.

    Example:

    >>> explainer = TransformerRelevance(vision_transformer)
    >>> explainer(images, target=3)["attributions"].shape == images.shape[:-1]
    True

    Reference:
        Chefer et al. (2020), equations 13 and 14, arxiv.org/abs/2012.09838
    """

    def __init__(self, model, token=0, grid="auto", upsample=True, score=None):
        super().__init__(model, token, grid, upsample, score=score)
        check_relevance_model(model)

    def weighted_attention(self, values, target, inputs):
        _, gradients, scored = self.attention_gradients(values, target, inputs)
        relevance = self.attention_relevance(values, scored["target"], inputs)
        return [g * r for g, r in zip(gradients, relevance, strict=True)], scored

    def attention_relevance(self, values, target, inputs):
        """The relevance of the probabilities in each call of an attention layer, in their order.

        Returns:
            list of [batch, heads, tokens, tokens] in at least float32. The sum of one is the part
            of the relevance 1 of the score that goes through its probabilities, not its values.
        """
        seen = []

        def record(attention):
            tape.watch(attention)
            seen.append(attention)
            return attention

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            with relevance_rules(self.model, record), emptied_by_calls(self.model, seen):
                score = self.scores(values, target, inputs)["score"]
        return widened(
            tape.gradient(score, seen, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        )


@component(GENERIC_PAPER)
class GradientAttentionRollout(WeightedRollout):
    """Which tokens speak for a class, by attention times its gradient, in a model of any build.

    One forward and one backward pass.

    Args:
        model: see `TokenMap`, as are `token`, `grid`, `upsample` and `score`.

    Returns (when called): as of `TransformerRelevance`.

    Reference:
        Chefer et al. (2021), equations 5 and 6, arxiv.org/abs/2103.15679
    """

    def weighted_attention(self, values, target, inputs):
        attentions, gradients, scored = self.attention_gradients(values, target, inputs)
        return [a * g for a, g in zip(attentions, gradients, strict=True)], scored
