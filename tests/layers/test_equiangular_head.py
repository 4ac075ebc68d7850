import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax

from kzoo.layers import equiangular_head
from kzoo.layers.equiangular_head import (
    EquiangularBasisHead,
    coherence_bound,
    equiangular_vectors,
)

pytestmark = pytest.mark.paper("Equiangular Basis Vectors")


def largest_cosine(vectors):
    gram = vectors.astype("float64") @ vectors.T
    return np.abs(gram - np.diag(np.diag(gram))).max()


@pytest.fixture(scope="module")
def many():
    return equiangular_vectors(60, 20, steps=400)


def test_lie_between_the_bound_and_1_35_of_it(many):
    welch = np.sqrt((60 - 20) / (20 * 59))
    assert coherence_bound(60, 20) == pytest.approx(welch)
    assert welch <= largest_cosine(many) <= 1.35 * welch
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("number", "dim"), [(7, 7), (3, 16), (1, 1)])
def test_up_to_dim_vectors_are_orthogonal(number, dim):
    vectors = equiangular_vectors(number, dim)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(number), atol=1e-6)


def test_known_optima():
    # Ten lines in a plane, 18 degrees apart; six in space through an icosahedron, 1 / sqrt(5).
    plane = largest_cosine(equiangular_vectors(10, 2))
    assert plane == pytest.approx(np.cos(np.pi / 10), abs=1e-4)
    icosahedron = largest_cosine(equiangular_vectors(6, 3))
    assert icosahedron == pytest.approx(1 / np.sqrt(5), abs=1e-3)


def test_stops_when_alpha_is_reached():
    vectors = equiangular_vectors(60, 20, alpha=0.3)
    assert 0.27 < largest_cosine(vectors) <= 0.3 + 1e-6


def test_blocks_do_not_change_the_vectors(monkeypatch):
    whole = equiangular_vectors(12, 4, steps=10)
    monkeypatch.setattr(equiangular_head, "_BLOCK", 5)
    np.testing.assert_allclose(equiangular_vectors(12, 4, steps=10), whole, atol=1e-5)


def test_seed_makes_the_vectors():
    first = equiangular_vectors(8, 3, seed=1, steps=20)
    np.testing.assert_array_equal(equiangular_vectors(8, 3, seed=1, steps=20), first)
    assert np.abs(equiangular_vectors(8, 3, seed=2, steps=20) - first).max() > 0.1


def test_loss_is_the_cross_entropy_of_cosines_over_tau(float64, rng):
    head = EquiangularBasisHead(6, temperature=0.07, steps=30)
    x, labels = rng.normal(size=(5, 4)), rng.integers(0, 6, 5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    ours = loss(labels, head(x))
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ head.vectors.numpy().T
    expected = -log_softmax(cosines / 0.07, axis=1)[np.arange(5), labels]
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_nothing_is_trained_and_the_count_of_weights(rng):
    features, dim, classes = 12, 5, 40
    model = keras.Sequential(
        [keras.Input((features,)), keras.layers.Dense(dim), EquiangularBasisHead(classes, steps=5)]
    )
    head = model.layers[-1]
    assert not head.trainable_weights
    dense = keras.layers.Dense(classes)
    dense.build((None, features))
    trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert trained == features * dim + dim
    assert dense.count_params() - trained == (features + 1) * (classes - dim)
    before = head.vectors.numpy()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(rng.normal(size=(8, features)), rng.integers(0, classes, 8), verbose=0)
    np.testing.assert_array_equal(head.vectors.numpy(), before)


def test_vectors_are_in_files_and_saved_models(tmp_path, rng):
    model = keras.Sequential([keras.Input((3,)), EquiangularBasisHead(5, steps=20)])
    moved = equiangular_vectors(5, 3, seed=9, steps=20)
    model.layers[-1].set_weights([moved])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.layers[-1].vectors.numpy(), moved)
    model.export(tmp_path / "saved", verbose=False)
    x = rng.normal(size=(2, 3)).astype("float32")
    saved = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(saved.serve(x), model(x), rtol=1e-6)


def test_spare_vectors_become_new_classes(rng):
    x = rng.normal(size=(4, 3)).astype("float32")
    few, more = (EquiangularBasisHead(n, capacity=9, steps=20) for n in (5, 8))
    old, new = few(x), more(x)
    assert old.shape == (4, 5)
    assert new.shape == (4, 8)
    np.testing.assert_array_equal(new[:, :5], old)


def test_built_inside_a_graph_it_has_the_same_vectors(rng):
    head = EquiangularBasisHead(5, steps=20)
    x = rng.normal(size=(2, 3)).astype("float32")
    expected = EquiangularBasisHead(5, steps=20)(x)
    model = keras.Sequential([head])
    model.compile("sgd", "mse")
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5)


def test_zero_embedding_has_zero_logits_and_a_finite_gradient():
    x = tf.zeros((1, 3))
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = EquiangularBasisHead(3)(x)
        total = tf.reduce_sum(tf.square(logits - 1.0))
    np.testing.assert_array_equal(logits, 0)
    assert np.isfinite(tape.gradient(total, x)).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"classes": 1}, "`classes` must be an integer of at least 2. Received: 1"),
        ({"classes": 4, "capacity": 3}, "`capacity` must be an integer of at least 4"),
        ({"classes": 4, "temperature": 0.0}, "`temperature` must be a finite number above 0"),
    ],
)
def test_head_refuses_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        EquiangularBasisHead(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"number": 0, "dim": 3}, "`number` must be an integer of at least 1. Received: 0"),
        ({"number": 3, "dim": 2.0}, "`dim` must be an integer of at least 1. Received: 2.0"),
        ({"number": 60, "dim": 20, "alpha": 0.1}, r"`alpha` must be in \[0.1841, 1\) for 60"),
        ({"number": 60, "dim": 20, "alpha": 0.2, "steps": 3}, "`alpha` was not reached in `steps`"),
        ({"number": 3, "dim": 2, "seed": -1}, "`seed` must be an integer of at least 0"),
    ],
)
def test_generator_refuses_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        equiangular_vectors(**kwargs)
