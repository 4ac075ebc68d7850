"""`tf.map_fn`, made safe against functions that raise."""

import tensorflow as tf


def map_fn(*args, **kwargs):
    """`tf.map_fn`, after which `tf.distribute` scopes still open if the function has raised.

    While it traces, TensorFlow's own sets the caching device of the variable scope, and an
    exception leaves it there: no strategy's scope can be entered any more in this process.
    """
    scope = tf.compat.v1.get_variable_scope()
    before = scope.caching_device
    try:
        return tf.map_fn(*args, **kwargs)
    finally:
        # `set_caching_device` refuses to be called eagerly, even to unset it.
        scope._caching_device = before
