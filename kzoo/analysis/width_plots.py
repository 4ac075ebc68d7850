"""Pictures of what changes with the width of a network."""

import numpy as np


def plot_coordinate_check(checks, of="changes", step=-1):
    """How far the activations of each layer move over the width; level lines are what muP wants.

    Args:
        checks: {"name of the parametrization": `CoordinateCheck`}, one panel each.
        of: "changes" or "sizes".
        step: index of the training step. Defaults to the last.

    Returns:
        `matplotlib.figure.Figure`
    """
    figure, panels = _panels(len(checks))
    for axes, (name, check) in zip(panels, checks.items(), strict=True):
        slopes = check.slopes(of, step)
        for index, layer in enumerate(check.layers):
            values = getattr(check, of)[:, step, index]
            axes.plot(check.widths, values, "o-", label=f"{layer}: {slopes[layer]:+.2f}")
        axes.set(xscale="log", yscale="log", xlabel="width", title=name)
        axes.set_xticks(check.widths, check.widths)
        axes.minorticks_off()
        axes.legend(title="layer: slope", fontsize=8, frameon=False)
        axes.grid(color="0.9")
    panels[0].set_ylabel({"changes": "RMS change", "sizes": "RMS"}[of] + " of activations")
    return figure


def plot_learning_rate_sweep(sweeps):
    """The final loss over the learning rate, a line per width; stars are the best rates.

    Args:
        sweeps: {"name of the parametrization": `LearningRateSweep`}, one panel each.

    Returns:
        `matplotlib.figure.Figure`
    """
    figure, panels = _panels(len(sweeps))
    for axes, (name, sweep) in zip(panels, sweeps.items(), strict=True):
        finite = np.where(np.isfinite(sweep.loss), sweep.loss, np.nan)
        for width, loss, color in zip(sweep.widths, finite, _shades(sweep.widths), strict=True):
            axes.plot(sweep.rates, loss, ".-", color=color, label=width)
            best = np.nanargmin(loss)
            axes.plot(sweep.rates[best], loss[best], "*", color=color, markersize=12)
        axes.set(xscale="log", yscale="log", xlabel="learning rate", title=name)
        # What has diverged may be of any size.
        axes.set_ylim(np.nanmin(finite) / 2, 4 * np.nanmax(finite[:, 0]))
        axes.legend(title="width", fontsize=8, frameon=False)
        axes.grid(color="0.9")
    panels[0].set_ylabel("loss after training")
    return figure


def plot_sharpness(trajectories, rate=None):
    """The sharpness along training, a line per width.

    Args:
        trajectories: {"name of the parametrization": {width: (steps, sharpness)}}.
        rate: learning rate of gradient descent; a line is drawn at the edge of stability 2 / rate.

    Returns:
        `matplotlib.figure.Figure`
    """
    figure, panels = _panels(len(trajectories))
    for axes, (name, lines) in zip(panels, trajectories.items(), strict=True):
        for color, (width, (steps, values)) in zip(_shades(lines), lines.items(), strict=True):
            axes.plot(steps, values, ".-", color=color, label=width)
        if rate is not None:
            axes.axhline(2 / rate, color="0.5", linestyle="--", label="2 / learning rate")
        axes.set(xlabel="step", title=name)
        axes.legend(title="width", fontsize=8, frameon=False)
        axes.grid(color="0.9")
    panels[0].set_ylabel("largest eigenvalue of the Hessian")
    return figure


def _panels(count):
    from matplotlib.figure import Figure

    if not count:
        raise ValueError("There must be at least one parametrization to draw.")
    figure = Figure(figsize=(4.2 * count, 3.6), layout="constrained")
    return figure, figure.subplots(1, count, sharey=True, squeeze=False)[0]


def _shades(widths):
    """From light to dark with the width."""
    import matplotlib

    return matplotlib.colormaps["viridis_r"](np.linspace(0.1, 1.0, len(widths)))
