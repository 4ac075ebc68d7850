import pytest
import tensorflow as tf

from kzoo.ops.map_fn import map_fn


def test_maps_as_tensorflow_does():
    squares = tf.function(lambda x: map_fn(tf.square, x))
    assert squares(tf.constant([1.0, 2.0, 3.0])).numpy().tolist() == [1.0, 4.0, 9.0]


def test_strategies_still_open_after_a_function_that_raised(mirrored):
    def fails(x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        tf.function(lambda x: map_fn(fails, x))(tf.zeros([2]))
    with mirrored.scope():
        assert tf.distribute.get_strategy() is mirrored
