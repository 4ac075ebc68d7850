"""Pictures of explanations and of training runs: NumPy arrays in, matplotlib figures out.

Figures are made without `pyplot`, so they need no display and nothing keeps them alive: save one
with `figure.savefig("picture.png")`.
"""

import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

_SIGNED_COLORS = "RdBu_r"
_UNSIGNED_COLORS = "inferno"
_LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_CELL_INCHES = 1.7


def heat_map(attribution, signed=None, percentile=99.0):
    """Colours of an attribution.

    Signed attributions, summed over the channels, are red where they speak for the score and blue
    where they speak against it, white at zero; unsigned ones, whose maximum over the channels is
    taken, go from black to yellow.

    Args:
        attribution: [height, width] or [height, width, channels].
        signed: whether it has a sign; None looks for negative values.
        percentile: absolute values above this percentile have the strongest colour, so that a few
            outliers do not darken the rest. 100 for none. Defaults to 99.

    Returns:
        float [height, width, 3] in [0, 1], RGB.
    """
    plane, signed = _plane(attribution, signed)
    if not 0 < percentile <= 100:
        raise ValueError(f"`percentile` must be in (0, 100]. Received: {percentile!r}")
    level = _level(plane, percentile)
    if signed:
        return _colors(_SIGNED_COLORS, 0.5 + 0.5 * plane / level)
    return _colors(_UNSIGNED_COLORS, plane / level)


def color_table(signed):
    """The 256 colours of `heat_map`, from the lowest value to the highest, float [256, 3]."""
    name = _SIGNED_COLORS if signed else _UNSIGNED_COLORS
    return matplotlib.colormaps[name](np.arange(256))[:, :3]


def overlay(image, attribution, alpha=0.5, signed=None, percentile=99.0):
    """The heat map of an attribution laid over the image in grey.

    Args:
        image: [height, width], [height, width, 1 or 3], in [0, 1] or [0, 255].
        attribution: of the same height and width, see `heat_map`.
        alpha: weight of the heat map, in [0, 1]. Defaults to 0.5.
        signed, percentile: see `heat_map`.

    Returns:
        float [height, width, 3] in [0, 1], RGB.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be in [0, 1]. Received: {alpha!r}")
    colors = heat_map(attribution, signed, percentile)
    grey = picture(image).mean(axis=-1, keepdims=True)
    if grey.shape[:2] != colors.shape[:2]:
        raise ValueError(
            "`attribution` must have the height and width of `image`. Received: "
            f"{colors.shape[:2]} and {grey.shape[:2]}"
        )
    return (1 - alpha) * grey + alpha * colors


def picture(image):
    """An image as float RGB [height, width, 3] in [0, 1].

    Args:
        image: [height, width] or [height, width, 1 or 3]; integers are taken to be in [0, 255],
            floats in [0, 1], and those beyond it are scaled from their minimum and maximum.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., np.newaxis]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            "`image` must have the shape [height, width], [height, width, 1] or [height, width, "
            f"3]. Received: {list(image.shape)}"
        )
    if np.issubdtype(image.dtype, np.integer):
        image = image / 255
    low, high = image.min(), image.max()
    if low < 0 or high > 1:
        image = (image - low) / (high - low)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image.astype(float)


def explanation_sheet(images, explanations, titles=None, signed=None, percentile=99.0, alpha=None):
    """A sheet with one row per image and the columns `image | method ...`.

    Args:
        images: [batch, height, width] or [batch, height, width, 1 or 3], see `picture`.
        explanations: {"name of the method": attributions [batch, height, width(, channels)]}.
        titles: [batch] captions of the images, for example "three 0.98". None for none.
        signed: {"name of the method": bool}, see `heat_map`; None looks for negative values.
        percentile: see `heat_map`.
        alpha: lays the heat maps over the images with this weight. None shows them alone.

    Returns:
        `matplotlib.figure.Figure`
    """
    images = np.asarray(images)
    count, columns = len(images), 1 + len(explanations)
    for name, maps in explanations.items():
        _check_length(f"explanations[{name!r}]", maps, count)
    if titles is not None:
        _check_length("titles", titles, count)
    height, width = images.shape[1:3]
    cell_height = _CELL_INCHES * height / width
    title_inches, head_inches = (0.2 if titles is not None else 0.05), 0.32
    figure = Figure(
        figsize=(columns * _CELL_INCHES, count * (cell_height + title_inches) + head_inches),
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0.02, hspace=0.02)
    axes = figure.subplots(count, columns, squeeze=False)
    for row, image in enumerate(images):
        _show(axes[row, 0], picture(image))
        if titles is not None:
            axes[row, 0].set_xlabel(str(titles[row]), fontsize=9, labelpad=3)
        for axis, (name, maps) in zip(axes[row, 1:], explanations.items(), strict=True):
            kind = (signed or {}).get(name, _has_negative(maps))
            if alpha is None:
                _show(axis, heat_map(maps[row], kind, percentile))
            else:
                _show(axis, overlay(image, maps[row], alpha, kind, percentile))
    for axis, name in zip(axes[0], ("image", *explanations), strict=True):
        axis.set_title(name, fontsize=10)
    return figure


def curves(metrics, x=None, xlabel="step", log=()):
    """Curves of a training run, one panel per metric.

    Args:
        metrics: {"panel": {"line": values}}, for example {"loss": {"train": [...], "validation":
            [...]}}, or {"panel": values} for a single line.
        x: [n] positions of the values; a line of fewer values is spread over their whole range.
            None counts from 1.
        xlabel: what `x` counts. Defaults to "step".
        log: names of the panels with a logarithmic axis.

    Returns:
        `matplotlib.figure.Figure`
    """
    if not metrics:
        raise ValueError("`metrics` must have at least one panel. Received: {}")
    unknown = set(log) - set(metrics)
    if unknown:
        raise ValueError(
            f"`log` must name panels of {', '.join(metrics)}. "
            f"Received: {', '.join(sorted(unknown))}"
        )
    columns = min(len(metrics), 3)
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, lines) in zip(axes, metrics.items(), strict=False):
        _draw_lines(axis, lines if isinstance(lines, dict) else {name: lines}, x)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel(xlabel)
        if name in log:
            _make_logarithmic(axis)
    for axis in axes[len(metrics) :]:
        axis.remove()
    return figure


def _plane(attribution, signed):
    """The attribution as [height, width], and whether it is signed."""
    attribution = np.asarray(attribution, float)
    if attribution.ndim not in (2, 3):
        raise ValueError(
            "`attribution` must have the shape [height, width] or [height, width, channels]. "
            f"Received: {list(attribution.shape)}"
        )
    signed = _has_negative(attribution) if signed is None else signed
    if attribution.ndim == 3:
        attribution = attribution.sum(-1) if signed else attribution.max(-1)
    return attribution, signed


def _has_negative(attribution):
    return bool(np.any(np.asarray(attribution) < 0))


def _level(plane, percentile):
    """The absolute value that has the strongest colour; a map of zeros has any."""
    magnitude = np.abs(plane)
    return np.percentile(magnitude, percentile) or magnitude.max() or 1.0


def _colors(name, values):
    return matplotlib.colormaps[name](np.clip(values, 0, 1))[..., :3]


def _check_length(name, values, count):
    if len(values) != count:
        raise ValueError(
            f"`{name}` must have one entry for each of the {count} images. Received: {len(values)}"
        )


def _show(axis, image):
    # Small images keep their pixels; larger ones are drawn smoothly.
    axis.imshow(image, interpolation="nearest" if max(image.shape) <= 64 else "antialiased")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(linewidth=0.5, color="0.6")


def _draw_lines(axis, lines, x):
    for color, (name, values) in zip(_repeated(_LINE_COLORS), lines.items(), strict=False):
        values = np.asarray(values, float)
        marker = "o" if len(values) < 2 else None
        axis.plot(_positions(x, len(values)), values, color=color, label=name, marker=marker)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=9)
    axis.grid(color="0.9", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def _make_logarithmic(axis):
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    # A few decades have labels in between, which powers of ten alone would leave bare.
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _repeated(items):
    while True:
        yield from items


def _positions(x, count):
    if x is None:
        return np.arange(1, count + 1)
    return np.asarray(x) if len(x) == count else np.linspace(x[0], x[-1], count)
