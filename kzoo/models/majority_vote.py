"""Majority voting of multi-label classifiers: each model has one vote on each label.

    votes_c  = 1/M sum_m [p_mc > threshold]
    label c  = votes_c > 1/2

With an even number of models there are ties, votes of exactly 1/2: a tie is no majority, so the
label is not given.

"Exploration of Interpretability Techniques for Deep COVID-19 Classification using Chest X-ray
Images", Chatterjee, Saad, Sarasaen, Ghosh, Krug, Khatun, Mishra, Desai, Radeva, Rose, Stober,
Speck, Nürnberger, 2020, arXiv 2006.02570; section on the ensemble.

The paper's score is the micro-F1, which is `keras.metrics.F1Score(average="micro",
threshold=0.5)`; it counts votes above 1/2, so that ties are settled in the same way.

Open choices: the paper says majority voting, while the authors' code averages the probabilities;
here it is voting. That code takes a label from a probability above 0.51; here from above 0.5.
"""

import keras

from kzoo.papers import Paper, component

PAPER = Paper(
    title="Exploration of Interpretability Techniques for Deep COVID-19 Classification using Chest "
    "X-ray Images",
    authors=(
        "Soumick Chatterjee", "Fatima Saad", "Chompunuch Sarasaen", "Suhita Ghosh", "Valerie Krug",
        "Rupali Khatun", "Rahul Mishra", "Nirja Desai", "Petia Radeva", "Georg Rose",
        "Sebastian Stober", "Oliver Speck", "Andreas Nürnberger",
    ),
    year=2020,
    arxiv="2006.02570",
)  # fmt: skip


@component(PAPER)
def MajorityVoteEnsemble(models, threshold=0.5, from_logits=False, name="majority_vote"):
    """One model of several multi-label classifiers that vote on each label.

    Args:
        models: built functional or Sequential models, of different names, with one input of the
            same shape and one output [batch, labels].
        threshold: probability above which a model votes for a label, in [0, 1). Defaults to 0.5.
        from_logits: whether the models give logits instead of probabilities. Defaults to False.
        name: of the ensemble.

    Returns:
        A functional `keras.Model` whose output is {"votes": float32 [batch, labels]}, the share in
        [0, 1] of the models that vote for a label. It is given where `votes > 0.5`. An output with
        a name, because votes are neither logits nor probabilities, which an export takes a nameless
        one to be. Votes have no gradient: explain the single models, or the ensemble by
        `kzoo.explain.Occlusion` and its like with `score=output_score("votes")`.

    Raises:
        ValueError: for models that do not fit together, or a threshold out of range.

    Example:

    >>> ensemble = MajorityVoteEnsemble([first, second, third])
    >>> f1 = keras.metrics.F1Score(average="micro", threshold=0.5)
    >>> ensemble.compile(loss={"votes": "mse"}, metrics={"votes": f1})
    >>> ensemble.evaluate(images, {"votes": labels})

    Reference:
        Chatterjee et al. (2020), arxiv.org/abs/2006.02570
    """
    models = list(models)
    _check_models(models)
    if not 0 <= threshold < 1:
        raise ValueError(f"`threshold` must be in [0, 1). Received: {threshold!r}")
    first = models[0].inputs[0]
    inputs = keras.Input(first.shape[1:], dtype=first.dtype, name="inputs")
    outputs = [model(inputs) for model in models]
    votes = VoteShare(threshold, from_logits, name="votes")(outputs)
    return keras.Model(inputs, {"votes": votes}, name=name)


@keras.saving.register_keras_serializable("kzoo")
class VoteShare(keras.layers.Layer):
    """The share of the tensors in a list that are above a threshold, at each place.

    Args:
        threshold: see `MajorityVoteEnsemble`, as is `from_logits`.
    """

    def __init__(self, threshold=0.5, from_logits=False, **kwargs):
        # Half precision would move probabilities over the threshold.
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.threshold = threshold
        self.from_logits = bool(from_logits)

    def call(self, inputs):
        if self.from_logits:
            inputs = [keras.ops.sigmoid(logits) for logits in inputs]
        votes = [keras.ops.cast(p > self.threshold, self.compute_dtype) for p in inputs]
        return keras.ops.mean(keras.ops.stack(votes), axis=0)

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return {
            **super().get_config(),
            "threshold": self.threshold,
            "from_logits": self.from_logits,
        }


def _check_models(models):
    if not models or not all(isinstance(m, keras.Model) and m.built for m in models):
        kinds = ", ".join(type(m).__name__ for m in models)
        raise ValueError(f"`models` must be built Keras models, one or more. Received: {kinds}")
    for model in models:
        if len(model.inputs or ()) != 1 or len(keras.tree.flatten(model.outputs)) != 1:
            raise ValueError(
                "`models` must be functional or Sequential, with one input and one output. "
                f"Received: {model.name!r}"
            )
    shapes = {(m.input_shape, m.output_shape) for m in models}
    if len(shapes) > 1 or len(models[0].output_shape) != 2:
        raise ValueError(
            "`models` must have the same input and outputs [batch, labels]. Received: "
            f"{', '.join(f'{m.name}: {m.input_shape} -> {m.output_shape}' for m in models)}"
        )
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(
            f"`models` must have different names; assign `model.name`. Received: {', '.join(names)}"
        )
