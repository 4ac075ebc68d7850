"""Spectral convolution: a learned filter on the low Fourier modes of a function on a periodic grid.

    (K u)(x) = sum over |k_j| < m_j of W_k c_k exp(2 pi i <k, x>)    (real part)
    c_k = 1/N sum over the N grid points of u(x) exp(-2 pi i <k, x>)

The coefficients c_k of a function do not depend on the grid that it is sampled on, and neither
does the output: the layer is a map between functions, and the same weights serve every grid.

"Principled Approaches for Extending Neural Architectures to Function Spaces for Operator
Learning", Berner, Liu-Schiaffini, Kossaifi, Duruisseaux, Bonev, Azizzadenesheli, Anandkumar, 2025,
arXiv 2506.10973; the layer itself is from "Fourier Neural Operator for Parametric Partial
Differential Equations", Li et al., 2020, arXiv 2010.08895, section 4.

Open choices: the kept set |k_j| < m_j is symmetric, as in Li et al.'s text; their code keeps
-m_j as well, on all axes but the last. Half of the coefficients on the last axis is stored, since
u is real. Weights are real and imaginary parts in two real variables, initialised as in
their code: uniform between 0 and 1 / (channels x filters). Modes that a grid cannot show are left
out: a coarse grid uses the lower part of the weights.
"""

import keras
import tensorflow as tf

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Principled Approaches for Extending Neural Architectures to Function Spaces for "
    "Operator Learning",
    authors=(
        "Julius Berner",
        "Miguel Liu-Schiaffini",
        "Jean Kossaifi",
        "Valentin Duruisseaux",
        "Boris Bonev",
        "Kamyar Azizzadenesheli",
        "Anima Anandkumar",
    ),
    year=2025,
    arxiv="2506.10973",
)


@component(
    PAPER,
    example=Example(
        kwargs={"filters": 3, "modes": (3, 2)},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 8, 7, 2)).astype("float32"),),
    ),
)
class SpectralConv(keras.layers.Layer):
    """A convolution over the whole periodic domain, given by its low Fourier modes.

    Works on grids of any size, also open (`None`) ones: train on a coarse grid, evaluate on a fine
    one. The cost is that of the FFT. Half-precision policies compute the transform in float32.

    Args:
        filters: number of output channels.
        modes: for each grid axis, how many frequencies 0, 1, ..., modes - 1 to keep, with their
            negatives; an integer for one axis.
        kernel_initializer: of real and imaginary parts; None is uniform between 0 and
            1 / (channels x filters), as in Li et al.'s code. Defaults to None.
        kernel_regularizer: of real and imaginary parts. Defaults to None.

    Input shape: [batch, n_1, ..., n_d, channels] for d values in `modes`.
    Output shape: [batch, n_1, ..., n_d, filters].

    Reference:
        Berner et al. (2025), section 4, arxiv.org/abs/2506.10973
    """

    def __init__(self, filters, modes, kernel_initializer=None, kernel_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.filters = _positive("filters", filters)
        modes = (modes,) if isinstance(modes, int) else tuple(modes)
        if not modes:
            raise ValueError("`modes` must name at least one axis. Received: ()")
        self.modes = tuple(_positive("modes", each) for each in modes)
        self.kernel_initializer = kernel_initializer and keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.input_spec = keras.layers.InputSpec(ndim=len(self.modes) + 2)

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(f"The last axis, channels, must be known. Received: {input_shape}")
        initializer = self.kernel_initializer or keras.initializers.RandomUniform(
            0.0, 1.0 / (channels * self.filters)
        )
        frequencies = [*(2 * m - 1 for m in self.modes[:-1]), self.modes[-1]]
        self.kernel_real, self.kernel_imag = (
            self.add_weight(
                name=name,
                shape=(*frequencies, channels, self.filters),
                # A clone, since one seeded initializer gives the same values twice.
                initializer=initializer.clone(),
                regularizer=self.kernel_regularizer,
            )
            for name in ("kernel_real", "kernel_imag")
        )
        self.input_spec = keras.layers.InputSpec(ndim=len(self.modes) + 2, axes={-1: channels})

    def call(self, inputs):
        dtype = "float64" if inputs.dtype == "float64" else "float32"
        kernel = tf.complex(tf.cast(self.kernel_real, dtype), tf.cast(self.kernel_imag, dtype))
        axes = len(self.modes)
        sizes = [_size(inputs, axis + 1) for axis in range(axes)]
        # Channels first, so that the grid axes are the last ones, where the FFT works.
        spectrum = tf.signal.rfft(_rolled(tf.cast(inputs, dtype), axes + 1, 1))
        kept = _smaller(self.modes[-1], sizes[-1] // 2 + 1)
        spectrum, kernel = spectrum[..., :kept], _axis_slice(kernel, axes - 1, 0, kept)
        for axis in range(axes - 1):
            spectrum = _on_axis(spectrum, axis + 2, tf.signal.fft)
            kept = _smaller(self.modes[axis], (sizes[axis] + 1) // 2)
            spectrum = _low(spectrum, axis + 2, kept)
            kernel = _low(kernel, axis, kept)
        letters = "xyzuvw"[:axes]
        spectrum = tf.einsum(f"bi{letters},{letters}io->bo{letters}", spectrum, kernel)
        for axis in range(axes - 1):
            spectrum = _unlow(spectrum, axis + 2, sizes[axis])
            spectrum = _on_axis(spectrum, axis + 2, tf.signal.ifft)
        missing = sizes[-1] // 2 + 1 - _size(spectrum, axes + 1)
        spectrum = tf.pad(spectrum, [[0, 0]] * (axes + 1) + [[0, missing]])
        outputs = tf.signal.irfft(spectrum, [sizes[-1]])
        outputs = tf.ensure_shape(outputs, [None, self.filters, *inputs.shape[1:-1]])
        return tf.cast(_rolled(outputs, 1, axes + 1), inputs.dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        initializer = self.kernel_initializer
        return {
            **super().get_config(),
            "filters": self.filters,
            "modes": self.modes,
            "kernel_initializer": initializer and keras.initializers.serialize(initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


def _positive(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be integers of at least 1. Received: {value!r}")
    return value


def _size(tensor, axis):
    """An int where the graph knows it, so that static shapes stay static; else a tensor."""
    return tensor.shape[axis] if tensor.shape[axis] is not None else tf.shape(tensor)[axis]


def _smaller(a, b):
    return tf.minimum(a, b) if tf.is_tensor(b) else min(a, b)


def _rolled(tensor, source, target):
    """The tensor with one axis moved to another place."""
    order = [axis for axis in range(tensor.shape.rank) if axis != source]
    order.insert(target, source)
    return tf.transpose(tensor, order)


def _on_axis(tensor, axis, transform):
    last = tensor.shape.rank - 1
    return _rolled(transform(_rolled(tensor, axis, last)), last, axis)


def _axis_slice(tensor, axis, start, stop):
    return tensor[(slice(None),) * axis + (slice(start, stop),)]


def _low(tensor, axis, kept):
    """Frequencies 0 ... kept - 1 and 1 - kept ... -1 of an axis in the FFT's order."""
    size = _size(tensor, axis)
    negative = _axis_slice(tensor, axis, size - kept + 1, size)
    return tf.concat([_axis_slice(tensor, axis, 0, kept), negative], axis)


def _unlow(tensor, axis, size):
    """The inverse of `_low`: zeros for all other frequencies of an axis of `size` points."""
    frequencies = _size(tensor, axis)
    kept = (frequencies + 1) // 2
    shape = [_size(tensor, each) for each in range(tensor.shape.rank)]
    shape[axis] = size - frequencies
    parts = [
        _axis_slice(tensor, axis, 0, kept),
        tf.zeros(shape, tensor.dtype),
        _axis_slice(tensor, axis, kept, frequencies),
    ]
    return tf.concat(parts, axis)
