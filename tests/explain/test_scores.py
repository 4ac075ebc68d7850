"""What is explained, and what is refused, for every explainer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import IntegratedGradients, Saliency
from kzoo.explain.scores import class_score, margin_score, output_score, segmentation_score

LOGITS = np.array([[1.0, 4.0, 2.0], [3.0, -1.0, 2.0]], "float32")


def test_ranks_stand_for_the_classes_in_their_order():
    for rank, classes, scores in (
        (-1, [1, 0], [4, 3]),
        (-2, [2, 2], [2, 2]),
        (-3, [0, 1], [1, -1]),
    ):
        score, target = class_score(tf.constant(LOGITS), tf.fill([2], rank))
        np.testing.assert_array_equal(target, classes)
        np.testing.assert_array_equal(score, scores)
    _, target = class_score(tf.constant(LOGITS), tf.constant([2, -2]))
    np.testing.assert_array_equal(target, [2, 2])


def test_margin_over_the_best_other_class():
    score, target = margin_score(tf.constant(LOGITS), tf.constant([-1, 2]))
    np.testing.assert_array_equal(target, [1, 2])
    np.testing.assert_array_equal(score, [4 - 2, 2 - 3])


def test_segmentation_sums_the_logits_where_the_class_wins():
    outputs = tf.constant([[[[1.0, 3.0], [2.0, 5.0]], [[4.0, 0.0], [1.0, 1.5]]]])
    score, target = segmentation_score(outputs, tf.constant([1]))
    np.testing.assert_allclose(score, [3 + 5 + 1.5])
    score, target = segmentation_score(outputs, tf.constant([-2]))
    np.testing.assert_array_equal(target, [0])
    np.testing.assert_allclose(score, [4])


def test_one_of_several_outputs():
    x = keras.Input([2])
    model = keras.Model(x, {"a": keras.layers.Dense(2)(x), "b": keras.layers.Dense(3, name="b")(x)})
    inputs = np.ones([1, 2], "float32")
    result = Saliency(model, absolute=False, score=output_score("b"))(inputs, target=2)
    np.testing.assert_allclose(
        result["attributions"][0], model.get_layer("b").kernel[:, 2], rtol=1e-6
    )
    np.testing.assert_allclose(result["predictions"]["b"], model(inputs)["b"])


@pytest.fixture
def dense():
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(3, "softmax")])


@pytest.mark.parametrize("target", [3, -4, [0, 3]])
def test_targets_out_of_range_are_refused_in_the_graph(dense, target):
    for make in (Saliency, IntegratedGradients):
        with pytest.raises(ValueError, match="`target` must be a class.*3"):
            make(dense)(np.zeros([2, 4]), target=target)


def test_inputs_are_checked(dense):
    explainer = Saliency(dense)
    with pytest.raises(ValueError, match=r"`inputs` must have the shape \(None, 4\).*\(2, 5\)"):
        explainer(np.zeros([2, 5]))
    with pytest.raises(ValueError, match="`inputs` must be of dtype float32. Received: <U"):
        explainer(np.full([2, 4], "x"))
    with pytest.raises(ValueError, match="`inputs` must be finite : Tensor had NaN values"):
        explainer(np.array([[0, 1, np.nan, 2]]))
    x = keras.Input([4])
    rounded = Saliency(keras.Model(x, keras.layers.Dense(2)(keras.ops.round(x))))
    with pytest.raises(ValueError, match="no gradient.*nothing on the way can be differentiated"):
        rounded(np.zeros([1, 4]))


def test_predictions_are_the_logits(dense, rng):
    x = rng.normal(size=(3, 4)).astype("float32")
    result = Saliency(dense)(x)
    np.testing.assert_allclose(tf.nn.softmax(result["predictions"]), dense(x), rtol=1e-5)


def test_the_nearest_layer_is_named(dense):
    with pytest.raises(ValueError, match="Did you mean 'dense"):
        Saliency(dense, tap="dens")
