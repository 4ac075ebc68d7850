"""UPGrad and DualProj: projections of gradients onto the dual cone of all of them.

    pi_J(x) = argmin_{y: J y >= 0} ||y - x||
    UPGrad:   A(J) = sum_i p_i pi_J(g_i)       ("Jacobian Descent for Multi-Objective Optimization",
                                                Quinton, Rey, 2024, arXiv 2406.16232, section 3)
    DualProj: A(J) = pi_J(sum_i p_i g_i)       ("Gradient Episodic Memory for Continual Learning",
                                                Lopez-Paz, Ranzato, 2017, arXiv 1706.08840)

with the preferences p, 1/m each. Both are free of conflict, J A(J) >= 0; UPGrad is also linear
under scaling: A(diag(c) J) is linear in c > 0. The quadratic programs are solved to rounding,
without the regularization that the authors' library adds to the Gramian.
"""

import tensorflow as tf

from kzoo.ops.aggregation.aggregator import PreferenceWeighting, register
from kzoo.ops.aggregation.quadratic import project_onto_dual_cone


@register
class UPGrad(PreferenceWeighting):
    """Every gradient projected onto the dual cone of all of them, and their mean.

    The projections are m quadratic programs in m weights; they take O(m^4) operations and O(m^3)
    numbers of memory together.

    Args:
        preference: list of m numbers of at least 0, the weights of the projected gradients; None
            for 1/m each.

    Example:

    >>> UPGrad()([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    [0.2924, 1.9006, 1.9006]

    Reference:
        Quinton and Rey (2024), equation 5, arxiv.org/abs/2406.16232
    """

    def weights(self, gramian, step=0):
        projected = project_onto_dual_cone(gramian, tf.linalg.diag(self.preferred(gramian)))
        return tf.reduce_sum(projected, axis=0)


@register
class DualProj(PreferenceWeighting):
    """The mean gradient projected onto the dual cone of all gradients.

    Args:
        preference: list of m numbers of at least 0, the weights of the gradients; None for 1/m
            each.

    Reference:
        Lopez-Paz and Ranzato (2017), equation 11, arxiv.org/abs/1706.08840
    """

    def weights(self, gramian, step=0):
        return project_onto_dual_cone(gramian, self.preferred(gramian)[tf.newaxis])[0]
