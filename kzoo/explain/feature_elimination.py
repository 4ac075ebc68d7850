"""RFEwNA: recursive feature elimination with neural attribution.

    repeat: train on the features that are left, from new weights
            stop if the validation score is worse than before
            importance_i = mean over the validation set of |a_i(x)|
            drop the 20 % of the features with the least importance

"ChaosMining: A Benchmark to Evaluate Post-Hoc Local Attribution Methods in Low SNR Environments",
Shi, Kan, Smucny, Davidson, 2024, arXiv 2406.12150; section on RFEwNA.

Deviations from the authors' code: at least one feature is dropped in a round (there the search ends
where 20 % is less than one); what is returned is the set with the best score (there, the set after
it, that was found to be worse); `patience` rounds without a better score may be allowed.
"""

import numpy as np

from kzoo.papers import Paper, component

PAPER = Paper(
    title="ChaosMining: A Benchmark to Evaluate Post-Hoc Local Attribution Methods in Low SNR "
    "Environments",
    authors=("Ge Shi", "Ziwen Kan", "Jason Smucny", "Ian Davidson"),
    year=2024,
    arxiv="2406.12150",
)


@component(PAPER, not_served="it looks at a whole set of inputs")
class RFEwNA:
    """Recursive feature elimination that ranks by the attributions of a neural network.

    Args:
        train: `train(x, y, seed) -> model` for x of any number of columns, from new weights.
        attribute: `attribute(model, x, y)`, an array of the shape of `x`; for an explainer
            `lambda model, x, y: Saliency(model)(x)["attributions"]`.
        score: `score(model, x, y) -> float`, higher is better. None for the negative mean absolute
            error, the paper's choice for regression.
        keep: share of the features that stay after a round, in [0, 1). Defaults to 0.8.
        patience: rounds without a better score that are allowed before the search ends; None goes
            on to a single feature. Defaults to 0, as in the paper.

    After `fit`: `support_`, bool [features]; `history_`, a list of (features int [n], score) of
    all rounds; `model_`, the model that was trained on the chosen features.

    Example:

    >>> search = RFEwNA(train, lambda model, x, y: Saliency(model)(x)["attributions"])
    >>> search.fit((x_train, y_train), (x_validation, y_validation))
    >>> np.flatnonzero(search.support_)

    Reference:
        Shi et al. (2024), arxiv.org/abs/2406.12150
    """

    def __init__(self, train, attribute, score=None, keep=0.8, patience=0):
        if not 0 <= keep < 1:
            raise ValueError(f"`keep` must be in [0, 1). Received: {keep!r}")
        if patience is not None and patience < 0:
            raise ValueError(f"`patience` must be None or at least 0. Received: {patience!r}")
        self.train = train
        self.attribute = attribute
        self.score = score or negative_mean_absolute_error
        self.keep = keep
        self.patience = patience

    def fit(self, train_data, validation_data, seed=0):
        """Searches the features of `train_data`; both are (x [num_examples, features], y).

        Returns:
            The object itself.
        """
        (x, y), (x_val, y_val) = [[np.asarray(array) for array in data] for data in
                                  (train_data, validation_data)]  # fmt: skip
        if x.ndim != 2 or x_val.shape[1:] != x.shape[1:]:
            raise ValueError(
                "`train_data` and `validation_data` must hold tables of the same columns. "
                f"Received: {list(x.shape)} and {list(x_val.shape)}"
            )
        features, best, since = np.arange(x.shape[1]), None, 0
        self.history_ = []
        while len(features):
            model = self.train(x[:, features], y, seed)
            score = float(self.score(model, x_val[:, features], y_val))
            self.history_.append((features, score))
            if best is None or score > best[1]:
                best, since = (features, score, model), 0
            else:
                since += 1
            if self.patience is not None and since > self.patience:
                break
            features = self._reduced(features, model, x_val[:, features], y_val)
        self.support_ = np.isin(np.arange(x.shape[1]), best[0])
        self.model_ = best[2]
        return self

    def _reduced(self, features, model, x, y):
        """The features without the least important."""
        importance = np.abs(np.asarray(self.attribute(model, x, y))).mean(axis=0)
        if importance.shape != features.shape:
            raise ValueError(
                f"`attribute` must return the shape {list(x.shape)} of its input. Received a mean "
                f"over the examples of shape {list(importance.shape)}"
            )
        drop = max(1, int(round(len(features) * (1 - self.keep), 9)))
        return np.sort(features[np.argsort(importance, kind="stable")[drop:]])


def negative_mean_absolute_error(model, x, y):
    """Less the mean of |prediction - y|."""
    predictions = np.asarray(model.predict(x, verbose=0)).reshape(np.shape(y))
    return -float(np.mean(np.abs(predictions - y)))
