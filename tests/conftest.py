"""What all tests share: two logical CPUs, a fresh Keras state, one mirrored strategy."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import keras
import numpy as np
import pytest
import tensorflow as tf

# Set here, before TensorFlow starts its devices, so that every test can use two replicas.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="session")
def mirrored():
    """Two CPU replicas, once for the session: a second mirrored strategy fails."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(autouse=True)
def _keras_state():
    """Every test starts from the same seed and leaves precision as it was."""
    policy = keras.config.dtype_policy()
    floatx = keras.config.floatx()
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy(policy)
    keras.config.set_floatx(floatx)
    # What TensorFlow's own map_fn leaves behind where it raises, see `kzoo.ops.map_fn`.
    tf.compat.v1.get_variable_scope()._caching_device = None


@pytest.fixture
def float64():
    """The test runs in float64."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


@pytest.fixture
def rng():
    return np.random.default_rng(0)
