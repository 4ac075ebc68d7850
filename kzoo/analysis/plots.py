"""Pictures of loss surfaces. Each function returns a `matplotlib.figure.Figure` to save or show."""

import numpy as np

_DARK, _MARK = "#1f3b57", "#d1495b"


def plot_line(surface, title=""):
    """The loss along one direction.

    Args:
        surface: a `kzoo.analysis.Surface` with `betas` None.
        title: title of the picture.
    """
    if surface.betas is not None:
        raise ValueError("`surface` must be a line: one with `betas` None.")
    figure, axes = _figure((5.0, 3.5), title)
    axes.plot(surface.alphas, surface.loss, color=_DARK)
    axes.set_xlabel("alpha")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    return figure


def plot_contour(surface, trajectory=None, levels=12, log=False, title=""):
    """Lines of equal loss on a plane, and the path of a training run on it.

    Args:
        surface: a `kzoo.analysis.Surface` over a grid.
        trajectory: the `kzoo.analysis.Trajectory` whose directions the surface was made along;
            its end, the origin, is marked. None for no path.
        levels: number of lines, or their values.
        log: whether the lines are evenly spaced in the logarithm of the loss, which must then be
            positive.
        title: title of the picture.
    """
    _check_grid(surface)
    figure, axes = _figure((5.5, 4.5), title)
    levels = _levels(surface.loss, levels, log)
    # Matplotlib wants the values as [y, x].
    lines = axes.contour(
        surface.alphas,
        surface.betas,
        surface.loss.T,
        levels,
        cmap="viridis",
        norm="log" if log else None,
    )
    axes.clabel(lines, fontsize=7, fmt="%.3g")
    axes.set_xlabel("alpha")
    axes.set_ylabel("beta")
    if trajectory is not None:
        axes.plot(*trajectory.coordinates.T, ".-", color=_MARK, linewidth=1.0)
        shares = trajectory.explained_variance_ratio
        axes.set_xlabel(f"first component ({shares[0]:.1%} of the variance)")
        axes.set_ylabel(f"second component ({shares[1]:.1%})")
    axes.plot(0.0, 0.0, "*", color=_MARK, markersize=12)
    return figure


def plot_surface(surface, log=False, title=""):
    """The loss over a plane as a surface in space.

    Args:
        surface: a `kzoo.analysis.Surface` over a grid.
        log: whether the height is the logarithm (base 10) of the loss.
        title: title of the picture.
    """
    _check_grid(surface)
    figure, axes = _figure((6.0, 5.0), title, projection="3d")
    heights = np.log10(surface.loss) if log else surface.loss
    x, y = np.meshgrid(surface.alphas, surface.betas, indexing="ij")
    axes.plot_surface(x, y, heights, cmap="viridis", linewidth=0)
    axes.set_xlabel("alpha")
    axes.set_ylabel("beta")
    axes.locator_params(nbins=5)
    axes.set_zlabel("log10 loss" if log else "loss")
    return figure


def _figure(size, title, **options):
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained")
    axes = figure.add_subplot(**options)
    axes.set_title(title)
    return figure, axes


def _check_grid(surface):
    if surface.betas is None:
        raise ValueError("`surface` must be a grid: one along two directions.")


def _levels(loss, levels, log):
    if not isinstance(levels, int):
        return levels
    finite = loss[np.isfinite(loss)]
    space = np.geomspace if log else np.linspace
    # Without the two ends, at which a line is a point or on the rim.
    return space(finite.min(), finite.max(), levels + 2)[1:-1]
