"""Decision rules of trees: read out of scikit-learn, run as plain Python.

A leaf of a tree is a box, lower_j < x_j <= upper_j for the features on the way to it, and a value
for each class. A tree is a list of boxes of which one holds; a forest or boosting is a sum of
trees, and its class the one with the largest sum.

"Interpreting Black-box Machine Learning Models for High Dimensional Datasets", Md. Rezaul Karim
and others, 2022, arXiv:2208.13405, makes them the last of its surrogates. scikit-learn compares in
single precision, float32(x) <= t; the bounds here are the double that parts the same numbers,
so that rules hold for Python's floats as well.
"""

import math
from dataclasses import dataclass

import numpy as np

from kzoo.models.self_attention_tabular import PAPER
from kzoo.papers import component


@dataclass(frozen=True)
class Rule:
    """A box of feature values, with what a tree says there.

    Args:
        bounds: {feature: (lower, upper)}: lower < x <= upper, infinite where there is no bound.
        values: one for each class; of a single tree, the shares of the classes.
        support: how many of the rows that the tree was fitted to are in the box.
    """

    bounds: dict
    values: tuple
    support: int

    def holds(self, row):
        """Whether a row, a sequence of floats, is in the box."""
        return all(low < row[feature] <= high for feature, (low, high) in self.bounds.items())

    @property
    def label(self):
        """The number of the class with the largest value."""
        return max(range(len(self.values)), key=self.values.__getitem__)

    def conditions(self, names=None):
        """The conditions as text, "x3 <= 0.5 and -1 < x7 <= 2"; names are for the features."""
        texts = [
            _condition(f"x{feature}" if names is None else names[feature], low, high)
            for feature, (low, high) in self.bounds.items()
        ]
        return " and ".join(texts) or "always"

    def describe(self, feature_names=None, class_names=None):
        """The rule as a sentence."""
        name = str(self.label) if class_names is None else class_names[self.label]
        return f"if {self.conditions(feature_names)} then {name} ({self.support} rows)"


@dataclass(frozen=True)
class RuleSet:
    """The rules of one or more trees whose values are added up.

    Args:
        trees: a list of `Rule`s for each tree; exactly one of each list holds for a row.
        classes: the labels of the classes.
    """

    trees: tuple
    classes: tuple

    @property
    def rules(self):
        """The rules of all trees, in one list."""
        return [rule for tree in self.trees for rule in tree]

    def fired(self, row):
        """The rule of each tree that holds for a row."""
        return [next(rule for rule in tree if rule.holds(row)) for tree in self.trees]

    def values(self, row):
        """The sums of the values of the rules that hold, one for each class."""
        return [sum(parts) for parts in zip(*(r.values for r in self.fired(row)), strict=True)]

    def predict_row(self, row):
        """The class of a row, a sequence of floats. Ties go to the first class."""
        values = self.values(row)
        return self.classes[max(range(len(values)), key=values.__getitem__)]

    def predict(self, rows):
        """The classes of many rows, a list."""
        return [self.predict_row(row) for row in np.asarray(rows, "float64").tolist()]

    def to_python(self, name="predict"):
        """The rules as the source of a Python function of a row, which needs nothing else."""
        lines = [f"def {name}(x):", f"    values = [0.0] * {len(self.classes)}"]
        for tree in self.trees:
            for position, rule in enumerate(tree):
                test = " and ".join(
                    _source(feature, low, high) for feature, (low, high) in rule.bounds.items()
                )
                lines.append(f"    {'elif' if position else 'if'} {test or 'True'}:")
                lines.append(f"        parts = {[float(value) for value in rule.values]}")
            lines.append("    values = [a + b for a, b in zip(values, parts)]")
        lines.append(f"    return {list(self.classes)}[values.index(max(values))]")
        return "\n".join(lines) + "\n"


@component(PAPER, not_served="it looks at a whole set of inputs")
def extract_rules(model, features=None):
    """The rules of a classifier of scikit-learn.

    Args:
        model: a fitted `DecisionTreeClassifier`, `RandomForestClassifier`, `ExtraTreesClassifier`,
            or `GradientBoostingClassifier` with `init="zero"`; of one output, of data without
            missing values.
        features: int [columns of the classifier], the numbers that its columns have in the rules.
            Defaults to 0, 1, 2 and so on.

    Returns:
        `RuleSet` that predicts what the classifier does.

    Raises:
        TypeError: for another kind of model.
        ValueError: for a boosting that starts from a model of its own.
    """
    from sklearn import ensemble, tree

    features = np.arange(model.n_features_in_) if features is None else np.asarray(features)
    if features.shape != (model.n_features_in_,):
        raise ValueError(
            f"`features` must be {model.n_features_in_} numbers. Received: {features.shape}"
        )
    if isinstance(model, tree.DecisionTreeClassifier):
        trees = [_rules(model.tree_, features, _shares)]
    elif isinstance(model, ensemble.RandomForestClassifier | ensemble.ExtraTreesClassifier):
        trees = [_rules(each.tree_, features, _shares) for each in model.estimators_]
    elif isinstance(model, ensemble.GradientBoostingClassifier):
        trees = _boosted(model, features)
    else:
        raise TypeError(
            "`model` must be a decision tree, random forest, extra trees or gradient boosting "
            f"classifier of scikit-learn. Received: {type(model).__name__}"
        )
    return RuleSet(tuple(map(tuple, trees)), tuple(model.classes_.tolist()))


def _boosted(model, features):
    if model.init != "zero":
        raise ValueError('`model` must be a boosting with `init="zero"`, whose sum starts at 0.')
    count = len(model.classes_)
    binary = count == 2
    trees = []
    for stage in model.estimators_:
        for output, each in enumerate(stage):
            place = np.eye(count)[1 if binary else output] * model.learning_rate
            trees.append(_rules(each.tree_, features, lambda value, place=place: value[0] * place))
    return trees


def _shares(value):
    return value / value.sum()


def _rules(tree, features, values):
    """The leaves of a tree from left to right."""
    rules, waiting = [], [(0, {})]
    while waiting:
        node, bounds = waiting.pop()
        if tree.children_left[node] < 0:
            found = values(tree.value[node, 0]).tolist()
            rules.append(Rule(bounds, tuple(found), int(tree.n_node_samples[node])))
            continue
        feature = int(features[tree.feature[node]])
        threshold = _in_double(tree.threshold[node])
        low, high = bounds.get(feature, (-math.inf, math.inf))
        waiting.append(
            (tree.children_right[node], {**bounds, feature: (max(low, threshold), high)})
        )
        waiting.append((tree.children_left[node], {**bounds, feature: (low, min(high, threshold))}))
    return rules


def _in_double(threshold):
    """The largest double that is at most `threshold` once it is rounded to single precision."""
    below = np.float32(threshold)
    if float(below) > threshold:
        below = np.nextafter(below, np.float32(-np.inf))
    above = np.nextafter(below, np.float32(np.inf))
    middle = (float(below) + float(above)) / 2
    return middle if np.float32(middle) <= below else math.nextafter(middle, -math.inf)


def _condition(name, low, high):
    if low == -math.inf:
        return f"{name} <= {high:.4g}"
    if high == math.inf:
        return f"{name} > {low:.4g}"
    return f"{low:.4g} < {name} <= {high:.4g}"


def _source(feature, low, high):
    left = "" if low == -math.inf else f"{low!r} < "
    right = "" if high == math.inf else f" <= {high!r}"
    return f"{left}x[{feature}]{right}"
