"""PI-HC-MoE: a neural operator whose basis functions experts combine so that an equation holds.

    backbone -> basis functions -> their derivatives -> one least-squares solve per cell -> u

"Scaling physics-informed hard constraints with mixture-of-experts", Chalapathi, Du, Krishnapriyan,
2024, arXiv 2402.13412, section 3 and figure 1.

Open choices: initial and boundary conditions hold by construction, u = u_0 + (factor that is 0
there) x (sum of w_n b_n), where the paper adds rows for them to the least squares. The backbone is
an FNO, as in the paper.
"""

import keras

from kzoo.layers.grid_derivatives import GridDerivatives
from kzoo.layers.hard_constraint import PAPER, linear_residual
from kzoo.layers.physics_moe import PhysicsMoE
from kzoo.models.fno import FNO
from kzoo.papers import component


@keras.saving.register_keras_serializable("kzoo")
class _Residual(keras.layers.Layer):
    """The residual of fields on a grid; rank 3 for the function, as the experts call it."""

    def __init__(self, residual, **kwargs):
        super().__init__(**kwargs)
        if isinstance(residual, dict):
            residual = keras.saving.deserialize_keras_object(residual)
        self.residual = residual

    def call(self, fields, data):
        rows = [keras.ops.reshape(x, (-1, 1, x.shape[-1])) for x in (fields, data)]
        shape = keras.ops.shape(fields)[:-1]
        return keras.ops.reshape(self.residual(*rows), (*shape, 1))

    def compute_output_shape(self, fields_shape, data_shape):
        return (*fields_shape[:-1], 1)

    def get_config(self):
        residual = keras.saving.serialize_keras_object(self.residual)
        return {**super().get_config(), "residual": residual}


@component(PAPER)
def PIHCMoE(
    grid,
    orders,
    modes,
    experts,
    residual=linear_residual,
    length=1.0,
    zero_at=None,
    input_channels=1,
    basis=16,
    filters=32,
    blocks=4,
    hidden=64,
    points=None,
    ridge=1e-8,
    iterations=50,
    name="pi_hc_moe",
):
    """A neural operator with a mixture of hard constraints as its last layer.

    Args:
        grid: number of points on each axis, the boundary's included.
        orders: derivatives that the equation has, see `kzoo.layers.GridDerivatives`; the function
            itself comes first, without being named.
        modes: of the FNO that predicts the basis.
        experts: number of cells on each axis.
        residual: `residual(fields, data)` of the equation, with the function, its derivatives in
            the order of `orders`, and the model's inputs; see
            `kzoo.layers.HardConstraintLeastSquares`. Defaults to `linear_residual`.
        length: extent of the domain. Defaults to 1.
        zero_at: where the conditions hold, see `kzoo.layers.GridDerivatives`. Defaults to nowhere.
        input_channels: of the input; the first is u_0, a function with the initial and boundary
            values. Defaults to 1.
        basis: number of basis functions. Defaults to 16.
        filters, blocks, hidden: of the FNO. Default to 32, 4 and 64.
        points, ridge, iterations: of the experts, see `kzoo.layers.PhysicsMoE`. Default to all
            points, 1e-8 and 50.
        name: of the model.

    Returns:
        A `keras.Model` from [batch, n_1, ..., n_d, input_channels] to {"solution": [..., 1],
        "residual": [..., 1]}; the mean square of the residual is the paper's training loss.

    Reference:
        Chalapathi et al. (2024), section 3, arxiv.org/abs/2402.13412
    """
    orders = ((0,) * len(grid), *orders)
    inputs = keras.Input((*grid, input_channels))
    backbone = FNO(modes, input_channels, basis, filters, blocks, hidden, name="basis")
    derivatives = GridDerivatives(orders, length, zero_at, dtype="float32", name="derivatives")
    offset = GridDerivatives(orders, length, dtype="float32", name="offset")(inputs[..., :1])
    fields = PhysicsMoE(
        experts, residual, points, ridge=ridge, iterations=iterations, name="experts"
    )(derivatives(backbone(inputs)), offset[..., 0], inputs)
    outputs = {
        "solution": fields[..., :1],
        "residual": _Residual(residual, dtype="float32", name="residual")(fields, inputs),
    }
    return keras.Model(inputs, outputs, name=name)
