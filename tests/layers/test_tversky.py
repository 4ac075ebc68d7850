import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.tversky import (
    DIFFERENCES,
    INTERSECTIONS,
    TverskyFeatureBank,
    TverskyProjection,
    TverskySimilarity,
)

pytestmark = pytest.mark.paper(
    "Tversky Neural Networks: Psychologically Plausible Deep Learning with Differentiable Tversky "
    "Similarity"
)

PSI = {
    "product": lambda a, b: a * b,
    "min": min,
    "max": max,
    "mean": lambda a, b: (a + b) / 2,
    "gmean": lambda a, b: (a * b) ** 0.5,
    "softmin": lambda a, b: -np.log(np.exp(-a) + np.exp(-b)),
}


def by_hand(a, b, features, intersection, difference, alpha, beta, theta):
    """Equations 3 to 6, feature by feature."""

    def distinctive(a, b):
        if difference == "ignorematch":
            return a if a > 0 and b <= 0 else 0.0
        return a - b if a > 0 and b > 0 and a > b else 0.0

    total = 0.0
    for f in features:
        in_a, in_b = float(a @ f), float(b @ f)
        if in_a > 0 and in_b > 0:
            total += theta * PSI[intersection](in_a, in_b)
        total -= alpha * distinctive(in_a, in_b) + beta * distinctive(in_b, in_a)
    return total


def constants(alpha=0.5, beta=0.5, theta=1.0):
    given = {"alpha": alpha, "beta": beta, "theta": theta}
    return {f"{k}_initializer": keras.initializers.Constant(v) for k, v in given.items()}


def normal():
    return keras.initializers.RandomNormal(seed=3)


def projection(units=3, features=7, **options):
    bank = TverskyFeatureBank(features, initializer=normal())
    return TverskyProjection(units, bank, prototypes_initializer=normal(), **options)


@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.parametrize("intersection", INTERSECTIONS)
def test_both_layers_are_the_equations(float64, rng, intersection, difference):
    # Keras's constants go through float32: these do so unchanged.
    weights = {"alpha": 0.375, "beta": 0.75, "theta": 1.75}
    x = rng.normal(size=(5, 4))
    layer = projection(intersection=intersection, difference=difference, **constants(**weights))
    result = layer(x)
    features, prototypes = layer.features.features.numpy(), layer.prototypes.numpy()
    expected = [
        [by_hand(a, b, features, intersection, difference, **weights) for b in prototypes]
        for a in x
    ]
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)
    pairs = TverskySimilarity(
        layer.features, intersection=intersection, difference=difference, **constants(**weights)
    )
    np.testing.assert_allclose(pairs(x[:3], prototypes), np.diag(expected[:3]), rtol=1e-9)


def test_binary_objects_are_sets():
    # With the identity as bank and the product, S counts elements.
    alpha, beta, theta = 0.25, 0.5, 2.0
    vectors = np.array(list(itertools.product([0.0, 1.0], repeat=3)), "float32")
    layer = TverskySimilarity(
        TverskyFeatureBank(3, initializer=keras.initializers.Identity()),
        **constants(alpha, beta, theta),
    )
    for a, b in itertools.product(vectors, repeat=2):
        set_a, set_b = ({k for k in range(3) if each[k]} for each in (a, b))
        expected = (
            theta * len(set_a & set_b) - alpha * len(set_a - set_b) - beta * len(set_b - set_a)
        )
        assert float(layer(a[None], b[None])[0]) == expected


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_symmetric_if_and_only_if_alpha_is_beta(float64, rng, difference):
    a, b = rng.normal(size=(2, 20, 4))
    bank = TverskyFeatureBank(9, initializer=normal())
    even = TverskySimilarity(bank, difference=difference, **constants(alpha=0.5, beta=0.5))
    odd = TverskySimilarity(bank, difference=difference, **constants(alpha=0.5, beta=0.25))
    np.testing.assert_allclose(even(a, b), even(b, a), rtol=1e-10)
    # S(a, b) - S(b, a) = (alpha - beta) (f(B - A) - f(A - B))
    rest = (bank.features.numpy(), "product", difference)
    expected = [
        0.25 * (by_hand(u, v, *rest, 1.0, 0.0, 0.0) - by_hand(v, u, *rest, 1.0, 0.0, 0.0))
        for u, v in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(odd(a, b) - odd(b, a), expected, atol=1e-10)
    assert np.abs(expected).max() > 0.05


def test_one_projection_separates_xor():
    # Features (1, -2) and (-2, 1): an input has one of them if and only if it is odd, and the
    # prototype (-1, -1) has both. S to it less S to (0, 0), which has none: -2 beta for even
    # inputs, theta - beta + alpha for odd ones.
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "float32")
    layer = TverskyProjection(2, 2)
    layer.build(x.shape)
    layer.features.features.assign([[1.0, -2.0], [-2.0, 1.0]])
    layer.prototypes.assign([[0.0, 0.0], [-1.0, -1.0]])
    np.testing.assert_array_equal(layer(x), [[0, -1], [-0.5, 0.5], [-0.5, 0.5], [0, -1]])


def test_parameters_and_a_shared_bank_counted_once(tmp_path, rng):
    p, k, d = 3, 5, 4
    lone = keras.Sequential([keras.Input([d]), TverskyProjection(p, k)])
    assert lone.count_params() == p * d + k * d + 3

    bank = TverskyFeatureBank(k)
    inputs = keras.Input([d])
    hidden = TverskyProjection(d, bank)(inputs)
    model = keras.Model(inputs, TverskyProjection(p, bank, difference="subtractmatch")(hidden))
    assert model.count_params() == d * d + p * d + k * d + 6

    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.layers[1].features is again.layers[2].features
    assert again.count_params() == model.count_params()
    x = rng.normal(size=(3, d)).astype("float32")
    np.testing.assert_array_equal(again(x), model(x))


@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.parametrize("intersection", INTERSECTIONS)
@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_are_finite_at_the_boundary_of_membership(intersection, difference, normalize):
    layer = TverskyProjection(2, 3, intersection, difference, normalize)
    layer.build([None, 3])
    layer.features.features.assign(np.eye(3))
    layer.prototypes.assign([[0.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    x = tf.constant([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1e-38, 1.0, -1.0], [1e-45, 0.0, 1e-13]])
    variables = [v.value for v in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(layer(x))
    for gradient in tape.gradient(total, [x, *variables]):
        assert np.isfinite(np.asarray(gradient)).all()


def test_softmin_has_equal_slopes_where_both_are_equal():
    layer = TverskySimilarity(1, "softmin", **constants(alpha=0.0, beta=0.0))
    layer.build([None, 1], [None, 1])
    layer.features.features.assign([[1.0]])
    a, b = tf.constant([[2.0]]), tf.constant([[2.0]])
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        value = layer(a, b)
    np.testing.assert_allclose(value, 2 - np.log(2), rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(value, [a, b]), 0.5, rtol=1e-6)


def test_terms_add_up_to_the_similarity_and_salience_is_the_positive_part(rng):
    x = rng.normal(size=(4, 6)).astype("float32")
    layer = projection(units=1, intersection="min", difference="subtractmatch")
    whole = layer(x)[:, 0]
    terms = layer.terms(layer.measures(x), layer.prototype_measures())
    np.testing.assert_allclose(sum(np.asarray(t).sum(1) for t in terms), whole, rtol=1e-4)
    assert np.asarray(terms[0]).min() >= 0 >= max(np.asarray(t).max() for t in terms[1:])
    measures = x @ layer.features.features.numpy().T
    np.testing.assert_allclose(layer.salience(x), measures.clip(0).sum(1), rtol=1e-5)


def test_normalize_leaves_only_the_direction(rng):
    x = rng.normal(size=(4, 6)).astype("float32")
    layer = projection(normalize=True)
    expected = layer(x)
    layer.prototypes.assign(3.0 * layer.prototypes)
    np.testing.assert_allclose(layer(10.0 * x), expected, rtol=1e-4, atol=1e-6)


def test_axes_between_batch_and_features_are_kept(rng):
    x = rng.normal(size=(2, 3, 4)).astype("float32")
    for difference in DIFFERENCES:
        layer = projection(units=5, difference=difference)
        result = layer(x)
        assert result.shape == layer.compute_output_shape(x.shape) == (2, 3, 5)
        np.testing.assert_allclose(result[1], layer(x[1]), rtol=1e-5, atol=1e-6)


def test_errors_name_the_argument(rng):
    with pytest.raises(ValueError, match="`intersection` must be one of product.*'dot'"):
        TverskyProjection(2, 3, intersection="dot")
    with pytest.raises(ValueError, match="`difference` must be one of.*'substractmatch'"):
        TverskySimilarity(3, difference="substractmatch")
    with pytest.raises(ValueError, match="`features` must be an integer of at least 1.*0"):
        TverskySimilarity(0)
    with pytest.raises(ValueError, match="`units` must be an integer of at least 1.*True"):
        TverskyProjection(True, 3)
    with pytest.raises(ValueError, match="vectors of one size"):
        TverskySimilarity(3)(np.zeros([2, 3]), np.zeros([2, 4]))
    bank = TverskyFeatureBank(3)
    TverskyProjection(2, bank)(np.zeros([1, 4]))
    with pytest.raises(ValueError, match="incompatible"):
        TverskyProjection(2, bank)(np.zeros([1, 5]))
