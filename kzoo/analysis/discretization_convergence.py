"""Is a network an operator? How its outputs change as the grid of its input becomes finer.

    e(n) = || G(u sampled on n points) - G(u sampled on the finest grid) || / || the latter ||

on the points that the grids share. For a map between functions e(n) goes to 0, at the order
log2(e(n) / e(2n)) of its quadrature; for one that depends on the grid it does not.

"Principled Approaches for Extending Neural Architectures to Function Spaces for Operator Learning",
Berner et al., 2025, arXiv 2506.10973, section 3 (discretisation convergence).

Open choices: periodic grids j / n, so that a grid's points are those of each multiple of it; norms
are over all functions, points and channels together.
"""

import numpy as np
from matplotlib.figure import Figure

from kzoo.layers.spectral_conv import PAPER
from kzoo.papers import component


@component(PAPER)
def discretization_convergence(model, functions, sizes):
    """Measures how the outputs for the same functions differ between grids.

    Args:
        model: `model(values)` takes [batch, n_1, ..., n_d, channels] of any grid and returns an
            array like it.
        functions: `functions(n)` samples the same functions at the points j / n on each axis, as
            an array [batch, n, ..., n, channels].
        sizes: at least two numbers of points, from coarse to fine, each a multiple of the first.

    Returns:
        {number of points: relative difference to the finest grid's output}, without the finest.

    Raises:
        ValueError: for sizes that do not share points, or outputs of another grid than the input.

    Reference:
        Berner et al. (2025), section 3, arxiv.org/abs/2506.10973
    """
    sizes = [int(n) for n in sizes]
    if len(sizes) < 2 or sorted(set(sizes)) != sizes or any(n % sizes[0] for n in sizes):
        raise ValueError(
            "`sizes` must be at least two numbers, rising, each a multiple of the first. "
            f"Received: {sizes}"
        )
    outputs = [_at_shared_points(model, functions(n), n // sizes[0]) for n in sizes]
    finest = outputs[-1]
    norm = np.linalg.norm(finest)
    return {
        n: float(np.linalg.norm(each - finest) / norm)
        for n, each in zip(sizes[:-1], outputs, strict=False)
    }


def plot_convergence(errors):
    """Draws what `discretization_convergence` returns for several models.

    Args:
        errors: {name of the model: {number of points: relative difference}}.

    Returns:
        A matplotlib `Figure`, both axes logarithmic.
    """
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, each in errors.items():
        axes.loglog(list(each), list(each.values()), "o-", label=name, base=2)
    axes.set_yscale("log", base=10)
    axes.set_xlabel("grid points")
    axes.set_ylabel("relative difference to the finest grid")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _at_shared_points(model, values, stride):
    outputs = np.asarray(model(values), "float64")
    if outputs.shape[1:-1] != np.shape(values)[1:-1]:
        raise ValueError(
            "The outputs must be on the grid of the inputs. "
            f"Received: {outputs.shape} for {np.shape(values)}"
        )
    return outputs[(slice(None), *[slice(None, None, stride)] * (outputs.ndim - 2))]
