"""Surrogates: a black box on many features, explained by trees on the few that matter.

    1. importance_j of every feature for the black box f, by probing and perturbing it
    2. the k features with the best ranks
    3. a tree, forest or boosting g on those, fitted to f's decisions, not to the labels
    4. the rules of g; for one row, the rule that holds and the least change that leads elsewhere

    fidelity:  R^2 = 1 - sum (g(x) - f(x))^2 / sum (f(x) - mean f)^2,  agreement = mean [g = f]

"Interpreting Black-box Machine Learning Models for High Dimensional Datasets", Karim, Shajalal,
Grass, Doehmen, Chala, Boden, Beecks, Decker, 2022, arXiv 2208.13405. The black box may be any Keras
classifier; `kzoo.models.SelfAttentionTabular` is the one with attention weights.

Open choices, on which the paper is not exact: several probes are combined by the mean of their
ranks; gradients are of the logit of the top class, their magnitudes averaged over the rows and
multiplied by the deviation of the feature; attention is the mean over the rows; boosting is
scikit-learn's instead of XGBoost; R^2 is over the probabilities of all classes; the change is the
cheapest in deviations of the features.
"""

from dataclasses import dataclass

import numpy as np

from kzoo.explain.black_box import class_probabilities
from kzoo.explain.decision_rules import extract_rules
from kzoo.explain.permutation_importance import permutation_importance
from kzoo.explain.saliency import Saliency
from kzoo.models.self_attention_tabular import PAPER
from kzoo.papers import component

_SURROGATES = ("tree", "forest", "boosting")


def permutation_probe(model, x, y, seed):
    """What the accuracy with respect to `y` loses when a feature is shuffled, float [features]."""
    return permutation_importance(model, x, y, seed=seed).mean


def gradient_probe(model, x, y, seed):
    """The mean magnitude of the gradients of the top class's logit, times the feature's deviation,
    float [features]."""
    explainer, parts = Saliency(model), []
    for start in range(0, len(x), 256):
        parts.append(np.abs(explainer(x[start : start + 256])["attributions"]))
    return np.concatenate(parts).mean(axis=0) * x.std(axis=0)


def attention_probe(model, x, y, seed):
    """The mean attention of the rows, for a model that has a method `importance(x)`, float
    [features]."""
    if not hasattr(model, "importance"):
        raise ValueError(
            'The probe "attention" is for models with a method `importance(x)`, such as '
            f"SelfAttentionTabular. Received: {type(model).__name__}"
        )
    return np.asarray(model.importance(x))


_PROBES = {
    "permutation": permutation_probe,
    "gradient": gradient_probe,
    "attention": attention_probe,
}


@dataclass(frozen=True)
class LocalExplanation:
    """Why a surrogate decides as it does for one row.

    Args:
        prediction: the surrogate's class.
        black_box: the black box's class.
        rules: the rule of each of its trees that holds.
        changes: {feature: (value, new value)}, the least change that leads the surrogate to
            another class; None where it knows none.
        changed_prediction: the surrogate's class after the change.
        changed_black_box: the black box's class after it; the change convinces both where these
            are the same.
    """

    prediction: int
    black_box: int
    rules: tuple
    changes: dict | None
    changed_prediction: int | None
    changed_black_box: int | None


@component(PAPER, not_served="it looks at a whole set of inputs")
class SurrogatePipeline:
    """Explains a classifier of tables by rules on its most important features.

    Args:
        model: a Keras classifier [batch, features] -> [batch, classes] or [batch, 1].
        num_features: k, how many features the surrogate sees. Defaults to 20.
        probes: how features are ranked: names from "permutation", "gradient" and "attention", or
            functions `probe(model, x, y, seed) -> [features]`. Defaults to ("permutation",).
        surrogate: "tree", "forest" or "boosting". Defaults to "tree".
        max_depth: of the surrogate's trees. Defaults to 5.
        seed: int.
        options: further arguments of the scikit-learn classifier, `min_samples_leaf` perhaps.

    After `fit`: `importances_`, {probe: [features]}; `features_`, int [k], the most important
    first; `surrogate_`, the scikit-learn classifier on those columns; `rules_`, a `RuleSet`.

    Example:

    >>> pipeline = SurrogatePipeline(model, num_features=10).fit(x_train, y_train)
    >>> pipeline.fidelity(x_test)["agreement"]
    >>> print(pipeline.rules_.rules[0].describe(feature_names))
    >>> pipeline.explain(x_test[0]).changes

    Reference:
        Karim et al. (2022), arxiv.org/abs/2208.13405
    """

    def __init__(
        self,
        model,
        num_features=20,
        probes=("permutation",),
        surrogate="tree",
        max_depth=5,
        seed=0,
        **options,
    ):
        if not isinstance(num_features, int) or num_features < 1:
            raise ValueError(f"`num_features` must be a positive integer. Received: {num_features}")
        probes = [probes] if isinstance(probes, str) or callable(probes) else list(probes)
        unknown = [each for each in probes if not callable(each) and each not in _PROBES]
        if unknown or not probes:
            raise ValueError(
                f"`probes` must be some of {', '.join(_PROBES)}, or functions. Received: {probes}"
            )
        if surrogate not in _SURROGATES:
            raise ValueError(
                f"`surrogate` must be one of {', '.join(_SURROGATES)}. Received: {surrogate!r}"
            )
        self.model = model
        self.num_features = num_features
        self.probes = {getattr(p, "__name__", p): _PROBES.get(p, p) for p in probes}
        self.surrogate = surrogate
        self.max_depth = max_depth
        self.seed = seed
        self.options = options

    def fit(self, x, y=None):
        """Ranks the features and fits the surrogate to the black box's decisions.

        Args:
            x: float [n, features].
            y: int [n], labels that the permutations are scored with. Defaults to the black box's
                own decisions. The surrogate never sees them.

        Returns:
            The object itself.
        """
        x = _table(x)
        if self.num_features > x.shape[1]:
            raise ValueError(
                f"`num_features` must be at most the {x.shape[1]} of `x`. Received: "
                f"{self.num_features}"
            )
        decisions = self.black_box(x).argmax(axis=1)
        if len(np.unique(decisions)) < 2:
            raise ValueError(f"The black box says class {decisions[0]} for all of `x`.")
        y = decisions if y is None else np.asarray(y)
        self.importances_ = {
            name: np.asarray(probe(self.model, x, y, self.seed), "float64")
            for name, probe in self.probes.items()
        }
        self.features_ = _best_ranks(self.importances_, x.shape[1])[: self.num_features]
        self.surrogate_ = self._classifier().fit(x[:, self.features_], decisions)
        self.rules_ = extract_rules(self.surrogate_, self.features_)
        self._scale = np.maximum(x.std(axis=0), np.finfo("float32").tiny)
        return self

    def black_box(self, x):
        """The probabilities that the black box gives, float [n, classes]."""
        return class_probabilities(self.model, _table(x))

    def predict(self, x):
        """The surrogate's classes, int [n], for all the columns that the black box has."""
        return self.surrogate_.predict(_table(x)[:, self.features_])

    def predict_proba(self, x):
        """The surrogate's probabilities, float [n, classes of the black box]; those of classes
        that the black box never chose are 0."""
        probabilities = self.surrogate_.predict_proba(_table(x)[:, self.features_])
        outputs = np.zeros([len(probabilities), self.black_box(x[:1]).shape[1]])
        outputs[:, self.surrogate_.classes_] = probabilities
        return outputs

    def fidelity(self, x):
        """How well the surrogate stands for the black box, see `surrogate_fidelity`."""
        return surrogate_fidelity(self.black_box(x), self.predict_proba(x))

    def explain(self, row):
        """The rules that hold for a row, and the least change to another decision.

        Args:
            row: float [features].

        Returns:
            `LocalExplanation`
        """
        row = _table(np.asarray(row)[np.newaxis])[0]
        prediction = int(self.predict(row[np.newaxis])[0])
        rules = tuple(self.rules_.fired(row.tolist()))
        changed = self._least_change(row, prediction)
        black_box = self.black_box(row[np.newaxis]).argmax(axis=1)
        if changed is None:
            return LocalExplanation(prediction, int(black_box[0]), rules, None, None, None)
        changes = {
            int(j): (float(row[j]), float(changed[j])) for j in np.flatnonzero(changed != row)
        }
        return LocalExplanation(
            prediction,
            int(black_box[0]),
            rules,
            changes,
            int(self.predict(changed[np.newaxis])[0]),
            int(self.black_box(changed[np.newaxis]).argmax(axis=1)[0]),
        )

    def _least_change(self, row, prediction):
        """The nearest point of a box of a rule at which the surrogate says another class."""
        points = np.stack([_nearest(rule, row) for rule in self.rules_.rules])
        points = points[self.predict(points) != prediction]
        if not len(points):
            return None
        costs = (np.abs(points - row) / self._scale).sum(axis=1)
        return points[np.argmin(costs)]

    def _classifier(self):
        from sklearn import ensemble
        from sklearn import tree as trees

        options = {"max_depth": self.max_depth, "random_state": self.seed, **self.options}
        if self.surrogate == "tree":
            return trees.DecisionTreeClassifier(**options)
        if self.surrogate == "forest":
            return ensemble.RandomForestClassifier(**options)
        return ensemble.GradientBoostingClassifier(init="zero", **options)


@component(PAPER, not_served="it looks at a whole set of inputs")
def surrogate_fidelity(black_box, surrogate):
    """How well one classifier stands for another.

    Args:
        black_box: probabilities [n, classes] of the one that is explained.
        surrogate: probabilities [n, classes] of the one that explains.

    Returns:
        dict of `agreement`, the share of rows with the same top class; and `r2`, the share of the
        variance of the black box's probabilities that the surrogate explains: 1 is perfect, 0 no
        better than their mean. It is nan where they do not vary.
    """
    black_box, surrogate = np.asarray(black_box, "float64"), np.asarray(surrogate, "float64")
    if black_box.ndim != 2 or black_box.shape != surrogate.shape or not len(black_box):
        raise ValueError(
            "`black_box` and `surrogate` must both be of shape [n, classes]. Received: "
            f"{black_box.shape} and {surrogate.shape}"
        )
    residual = ((surrogate - black_box) ** 2).sum()
    total = ((black_box - black_box.mean(axis=0)) ** 2).sum()
    return {
        "agreement": float((black_box.argmax(1) == surrogate.argmax(1)).mean()),
        "r2": float(1 - residual / total) if total > 0 else float("nan"),
    }


def _table(x):
    x = np.asarray(x, "float32")
    if x.ndim != 2 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"`x` must be finite, of shape [n, features]. Received: shape {x.shape}")
    return x


def _best_ranks(importances, count):
    """The features by the mean of their ranks, the best first."""
    ranks = np.zeros(count)
    for name, importance in importances.items():
        if importance.shape != (count,) or not np.isfinite(importance).all():
            raise ValueError(
                f"The probe {name!r} must return {count} finite numbers. Received: shape "
                f"{importance.shape}"
            )
        ranks[np.argsort(-importance, kind="stable")] += np.arange(count)
    return np.argsort(ranks, kind="stable")


def _nearest(rule, row):
    """The point of a rule's box that is nearest to a row, in single precision."""
    point = row.copy()
    for feature, (low, high) in rule.bounds.items():
        if not point[feature] > low:
            point[feature] = _above(low)
        elif not point[feature] <= high:
            point[feature] = _at_most(high)
    return point


def _above(bound):
    value = np.float32(bound)
    return value if float(value) > bound else np.nextafter(value, np.float32(np.inf))


def _at_most(bound):
    value = np.float32(bound)
    return value if float(value) <= bound else np.nextafter(value, np.float32(-np.inf))
