import itertools

import keras
import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.metrics import r2_score
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from kzoo.explain.decision_rules import Rule, extract_rules
from kzoo.explain.surrogate import SurrogatePipeline, gradient_probe, surrogate_fidelity
from kzoo.models.self_attention_tabular import SelfAttentionTabular

pytestmark = pytest.mark.paper(
    "Interpreting Black-box Machine Learning Models for High Dimensional Datasets"
)


class Box(keras.Layer):
    """Two logits: 0, and 10 (x3 - 0.5) with the sign of x1."""

    def call(self, x):
        logit = 10 * (x[:, 3] - 0.5) * keras.ops.sign(x[:, 1])
        return keras.ops.stack([keras.ops.zeros_like(logit), logit], axis=-1)


@pytest.fixture
def box():
    inputs = keras.Input([12])
    return keras.Model(inputs, Box()(inputs))


@pytest.fixture
def table(rng):
    return rng.normal(size=(400, 12)).astype("float32")


def truth(x):
    return ((x[:, 3] > 0.5) == (x[:, 1] > 0)).astype(int)


CLASSIFIERS = [
    DecisionTreeClassifier(max_depth=6, random_state=0),
    RandomForestClassifier(7, max_depth=5, random_state=0),
    GradientBoostingClassifier(init="zero", n_estimators=8, max_depth=3, random_state=0),
]


@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=["tree", "forest", "boosting"])
@pytest.mark.parametrize("classes", [2, 3])
def test_rules_in_plain_python_are_the_classifier(classifier, classes, rng):
    x = rng.normal(size=(300, 4))
    y = np.digitize(x[:, 0] * x[:, 1] + 0.3 * x[:, 2], [-0.2, 0.4][: classes - 1]) + 5
    classifier.fit(x, y)
    rules = extract_rules(classifier)
    # Rows at the thresholds themselves and beside them, in double precision.
    edges = [high for rule in rules.rules for _, high in rule.bounds.values()]
    near = np.array(edges)[np.isfinite(edges)]
    near = np.concatenate([near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf)])
    rows = np.concatenate([rng.normal(size=(2000, 4)), rng.choice(near, size=(3000, 4))])
    expected = classifier.predict(rows)
    np.testing.assert_array_equal(rules.predict(rows), expected)
    space = {}
    exec(rules.to_python("decide"), space)
    np.testing.assert_array_equal([space["decide"](row) for row in rows.tolist()], expected)


def test_bounds_are_exact_where_floats_are_rounded():
    """The middle of two neighbours in single precision is a number in double precision only."""
    above = np.nextafter(np.float32(8), np.float32(9))
    tree = DecisionTreeClassifier().fit([[8.0], [above]], [0, 1])
    middle = (8 + float(above)) / 2
    rows = np.array([[8.0], [middle], [np.nextafter(middle, 9)], [above]])
    np.testing.assert_array_equal(extract_rules(tree).predict(rows), tree.predict(rows))
    assert extract_rules(tree).predict(rows) == [0, 0, 1, 1]


def test_exactly_one_rule_of_a_tree_holds(rng):
    x = rng.normal(size=(200, 3))
    rules = extract_rules(DecisionTreeClassifier(max_depth=4).fit(x, x[:, 0] * x[:, 1] > 0))
    for row in rng.normal(size=(50, 3)).tolist():
        assert sum(rule.holds(row) for rule in rules.rules) == 1
    assert sum(rule.support for rule in rules.rules) == 200


def test_conditions_on_one_feature_are_one_interval():
    x = np.array([[0.0], [1.0], [2.0]])
    rules = extract_rules(DecisionTreeClassifier().fit(x, [0, 1, 0]), features=[9]).rules
    assert [rule.conditions() for rule in rules] == ["x9 <= 0.5", "0.5 < x9 <= 1.5", "x9 > 1.5"]
    assert rules[1].describe({9: "age"}, ["no", "yes"]) == "if 0.5 < age <= 1.5 then yes (1 rows)"
    assert Rule({}, (0.3, 0.7), 4).describe() == "if always then 1 (4 rows)"


def test_fidelity_is_to_the_black_box():
    black_box = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    surrogate = np.array([[1.0, 0.0], [0.3, 0.7], [0.0, 1.0]])
    found = surrogate_fidelity(black_box, surrogate)
    assert found["agreement"] == pytest.approx(2 / 3)
    expected = r2_score(black_box, surrogate, multioutput="variance_weighted")
    assert found["r2"] == pytest.approx(expected)
    assert surrogate_fidelity(black_box, black_box) == {"agreement": 1, "r2": 1}
    mean = np.broadcast_to(black_box.mean(0), [3, 2])
    assert surrogate_fidelity(black_box, mean)["r2"] == pytest.approx(0)


@pytest.mark.parametrize("surrogate", ["tree", "forest", "boosting"])
def test_pipeline_finds_the_features_and_stands_for_the_model(box, table, surrogate):
    pipeline = SurrogatePipeline(box, 2, surrogate=surrogate, max_depth=4).fit(table)
    assert set(pipeline.features_) == {1, 3}
    x = np.random.default_rng(1).normal(size=(300, 12)).astype("float32")
    assert pipeline.fidelity(x)["agreement"] > 0.97
    np.testing.assert_array_equal(pipeline.rules_.predict(x), pipeline.predict(x))
    assert np.mean(pipeline.predict(x) == truth(x)) > 0.97


def test_wrong_labels_change_the_ranking_but_not_what_is_fitted(box, table, rng):
    pipeline = SurrogatePipeline(box, 12, max_depth=4).fit(table, rng.integers(2, size=400))
    assert np.abs(pipeline.importances_["permutation"]).max() < 0.1
    assert pipeline.fidelity(table)["agreement"] > 0.97


def test_gradients_by_hand(box, table):
    """The top logit is 0, or 10 |x3 - 0.5| with the gradients +-10 in x3 and none in sign(x1)."""
    top = truth(table) == 1
    expected = np.zeros(12)
    expected[3] = 10 * top.mean() * table[:, 3].std()
    np.testing.assert_allclose(gradient_probe(box, table, None, 0), expected, rtol=1e-5)


def test_probes_are_combined_by_ranks(box, table):
    def descending(model, x, y, seed):
        return -np.arange(12.0)

    def late(model, x, y, seed):
        return np.arange(12) == 11

    # Ranks: 0..11 and 11 first, then 0..10: sums 1, 3, 5, ..., 21 for 0..10 and 11 for 11.
    pipeline = SurrogatePipeline(box, 7, probes=[descending, late]).fit(table)
    np.testing.assert_array_equal(pipeline.features_, [0, 1, 2, 3, 4, 5, 11])


def test_attention_is_asked_of_models_that_have_it(box, table):
    san = SelfAttentionTabular(12, 2, hidden_units=4)
    pipeline = SurrogatePipeline(san, 3, probes="attention").fit(table)
    np.testing.assert_array_equal(pipeline.features_, np.argsort(-san.importance(table))[:3])
    with pytest.raises(ValueError, match="models with a method `importance"):
        SurrogatePipeline(box, probes="attention", num_features=3).fit(table)


def test_local_explanation_is_the_least_change(box, table):
    pipeline = SurrogatePipeline(box, 2, max_depth=4).fit(table)
    row = np.zeros(12)
    row[[1, 3]] = 1.0, 0.8
    found = pipeline.explain(row)
    assert found.prediction == found.black_box == 1
    (rule,) = found.rules
    assert rule.holds(row)
    assert rule.label == 1
    # To x3 <= 0.5 it is 0.3, to x1 <= 0 it is 1.
    assert list(found.changes) == [3]
    assert found.changes[3][0] == pytest.approx(0.8)
    assert found.changes[3][1] == pytest.approx(0.5, abs=0.1)
    assert found.changed_prediction == 0


def test_no_cheaper_change_is_found_by_search(box, table):
    pipeline = SurrogatePipeline(box, 2, max_depth=3)
    pipeline.fit(table)
    row = table[5]
    found = pipeline.explain(row)
    cost = sum(abs(new - old) / table[:, j].std() for j, (old, new) in found.changes.items())
    assert found.changed_prediction != found.prediction
    grid = np.linspace(-3, 3, 241)
    rows = np.tile(row, [241 * 241, 1])
    rows[:, [1, 3]] = list(itertools.product(grid, grid))
    costs = (np.abs(rows - row) / table.std(0)).sum(1)[pipeline.predict(rows) != found.prediction]
    assert cost <= costs.min() + 1e-5


def test_refuses_models_without_rules(rng):
    x = rng.normal(size=(20, 2))
    with pytest.raises(TypeError, match="`model` must be a decision tree"):
        extract_rules(DecisionTreeRegressor().fit(x, x[:, 0]))
    with pytest.raises(ValueError, match='init="zero"'):
        extract_rules(GradientBoostingClassifier(n_estimators=1).fit(x, x[:, 0] > 0))
    with pytest.raises(ValueError, match="`features` must be 2 numbers"):
        extract_rules(DecisionTreeClassifier().fit(x, x[:, 0] > 0), [1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_features": 0}, "`num_features` must be a positive integer"),
        ({"probes": ["shap"]}, "`probes` must be some of"),
        ({"probes": []}, "`probes` must be some of"),
        ({"surrogate": "line"}, "`surrogate` must be one of"),
    ],
)
def test_refuses_bad_arguments(box, change, message):
    with pytest.raises(ValueError, match=message):
        SurrogatePipeline(box, **change)


def test_refuses_tables_that_do_not_fit(box, table):
    with pytest.raises(ValueError, match="at most the 12"):
        SurrogatePipeline(box, 13).fit(table)
    with pytest.raises(ValueError, match="`x` must be finite"):
        SurrogatePipeline(box, 2).fit(np.full([3, 12], np.nan))
    constant = np.ones([5, 12])
    with pytest.raises(ValueError, match="class 1 for all"):
        SurrogatePipeline(box, 2).fit(constant)
    with pytest.raises(ValueError, match="must return 12 finite numbers"):
        SurrogatePipeline(box, 2, probes=lambda *_: np.zeros(3)).fit(table)
    with pytest.raises(ValueError, match="`black_box` and `surrogate`"):
        surrogate_fidelity(np.zeros([3, 2]), np.zeros([3, 3]))
