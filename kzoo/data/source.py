"""`Source`: the examples of a data set, as arrays in memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from kzoo.ops.map_fn import map_fn

_PARALLEL_DECODERS = 16


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled examples, addressed by their number.

    Args:
        features: array [num_examples, ...], or a dict of them; for examples that are decoded when
            they are read, whatever `decode` takes, such as the paths of image files.
        labels: int array [num_examples] of class indices, kept as int32, or a float array of
            targets [num_examples, ...].
        name: name of the data set.
        split: name of the part of it, such as "train".
        class_names: names of the classes, by index; empty where there are none.
        decode: takes one example's features, as tensors, and returns what a model sees, with a
            static shape; None where the features are that already.

    Raises:
        ValueError: where the lengths differ or there is no example.

    Example:

    >>> source = Source(np.zeros([3, 8, 8, 1], "uint8"), [0, 1, 1], name="mine")
    >>> source.num_examples, source.input_spec.shape
    (3, TensorShape([8, 8, 1]))
    """

    features: np.ndarray | Mapping[str, np.ndarray]
    labels: np.ndarray
    name: str
    split: str = "train"
    class_names: tuple[str, ...] = ()
    decode: Callable | None = None

    def __post_init__(self):
        # A frozen dataclass can only be completed this way.
        object.__setattr__(self, "features", tf.nest.map_structure(np.asarray, self.features))
        object.__setattr__(self, "labels", _label_array(self.labels))
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        lengths = [len(array) for array in tf.nest.flatten(self.features)]
        if not self.num_examples or any(length != self.num_examples for length in lengths):
            raise ValueError(
                "`features` and `labels` must have the same number of examples, at least one. "
                f"Received: {lengths} and {self.num_examples}"
            )

    @property
    def num_examples(self):
        return len(self.labels)

    @property
    def input_spec(self):
        """`tf.TensorSpec` of one example's features, or a dict of them, without a batch."""
        spec = tf.nest.map_structure(
            lambda array: tf.TensorSpec(array.shape[1:], tf.as_dtype(array.dtype)), self.features
        )
        if self.decode is None:
            return spec
        outputs = tf.function(self.decode, autograph=False).get_concrete_function(spec)
        return tf.nest.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), outputs.structured_outputs
        )

    def take(self, count):
        """Returns the source of the first `count` examples."""
        if not 0 < count <= self.num_examples:
            raise ValueError(
                f"`count` must be in 1..{self.num_examples}, the number of examples. "
                f"Received: {count}"
            )
        return self.select(np.arange(count))

    def select(self, indices):
        """Returns the source of the examples with the given numbers, in that order."""
        features = tf.nest.map_structure(lambda array: array[indices], self.features)
        return replace(self, features=features, labels=self.labels[indices])

    def decoded(self):
        """Returns the source with every example decoded into memory."""
        if self.decode is None:
            return self
        arrays = tf.nest.map_structure(
            lambda spec: np.empty([self.num_examples, *spec.shape], spec.dtype.as_numpy_dtype),
            self.input_spec,
        )
        begin = 0
        for batch in self.batches():
            for array, values in zip(tf.nest.flatten(arrays), tf.nest.flatten(batch), strict=True):
                array[begin : begin + len(values)] = values
            begin += len(values)
        return replace(self, features=arrays, decode=None)

    def batches(self, size=1024):
        """Yields the decoded features in order, `size` examples at a time, as NumPy arrays."""
        if self.decode is not None:
            examples = tf.data.Dataset.from_tensor_slices(self.features).map(
                self.decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
            )
            yield from examples.batch(size).as_numpy_iterator()
            return
        for begin in range(0, self.num_examples, size):
            part = slice(begin, begin + size)
            yield tf.nest.map_structure(lambda array, part=part: array[part], self.features)


def decode_batch(source, features):
    """`source.decode` over a batch of features, as they are stored; in a graph or not."""
    if source.decode is None:
        return features
    return map_fn(
        source.decode,
        features,
        fn_output_signature=source.input_spec,
        parallel_iterations=_PARALLEL_DECODERS,
    )


def _label_array(labels):
    """int32 classes of shape [n], or float targets."""
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if np.issubdtype(labels.dtype, np.floating):
        return labels
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise ValueError(
            "`labels` must be class indices, integers of shape [n], or float targets. "
            f"Received: {labels.dtype} {list(labels.shape)}"
        )
    return labels.astype(np.int32)
