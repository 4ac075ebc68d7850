"""What a comparison of explainers gives: tables, JSON, and a sheet of pictures."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

RANDOM = "random"  # the map that is always added, the floor
_KINDS = ("maps", "mask", "explainer")
_BETTER = ("higher", "lower")


@dataclass(frozen=True)
class Measure:
    """A column of a comparison.

    Args:
        name: its heading.
        better: "higher" or "lower".
        kind: what `function` takes, all returning a float array [batch], NaN where undefined:
            "maps": `(model, x, target, maps, seed)` with maps [batch, *positions];
            "mask": `(maps, masks)`;
            "explainer": `(explainer, x, target, seed)`, which the random map has none of.
        function: the measure.
    """

    name: str
    better: str
    kind: str
    function: Callable

    def __post_init__(self):
        for name, value, allowed in (
            ("kind", self.kind, _KINDS),
            ("better", self.better, _BETTER),
        ):
            if value not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(allowed)}. Received: {value!r}"
                )


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured.

    Args:
        measures: the columns.
        values: {name of the measure: {name of the explainer: float [batch]}}; an explainer that a
            measure does not apply to is not there.
        seconds: {name of the explainer: seconds for an input}, tracing left out.
        inputs: x.
        targets: int [batch], the classes explained.
        maps: {name of the explainer: [batch, *positions]}.
    """

    measures: tuple[Measure, ...]
    values: dict[str, dict[str, np.ndarray]]
    seconds: dict[str, float]
    inputs: np.ndarray = field(repr=False)
    targets: np.ndarray = field(repr=False)
    maps: dict[str, np.ndarray] = field(repr=False)

    def mean(self, measure, explainer):
        """The mean over the inputs where it is defined; NaN where there is none."""
        return self._summary(measure, explainer)[0]

    def standard_error(self, measure, explainer):
        """The standard error of the mean; NaN with less than two values."""
        return self._summary(measure, explainer)[1]

    def _summary(self, measure, explainer):
        values = self.values[measure].get(explainer, np.empty(0))
        values = values[~np.isnan(values)]
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        return (float(values.mean()) if len(values) else np.nan), float(error)

    def to_json(self):
        """The means, standard errors and times as JSON; what is undefined is null."""
        table = {
            name: {
                "milliseconds": 1000 * self.seconds[name] if name in self.seconds else None,
                **{
                    measure.name: dict(
                        zip(
                            ("mean", "standard_error"),
                            map(_or_none, self._summary(measure.name, name)),
                            strict=True,
                        )
                    )
                    for measure in self.measures
                },
            }
            for name in self.maps
        }
        better = {measure.name: measure.better for measure in self.measures}
        return json.dumps(
            {"inputs": len(self.inputs), "better": better, "explainers": table}, indent=1
        )

    def to_markdown(self):
        """A table with a row for each explainer; the best of each column is bold.

        Arrows show whether higher or lower is better; the random map cannot be the best.
        """
        arrows = {"higher": "↑", "lower": "↓"}
        heads = [f"{measure.name} {arrows[measure.better]}" for measure in self.measures]
        lines = [
            "| | " + " | ".join([*heads, "ms per input"]) + " |",
            "|---|" + "---:|" * (len(heads) + 1),
        ]
        best = {measure.name: self._best(measure) for measure in self.measures}
        for name in self.maps:
            cells = [self._cell(each.name, name, best[each.name]) for each in self.measures]
            cells.append(f"{1000 * self.seconds[name]:.3g}" if name in self.seconds else "")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def figure(self, rows=4):
        """The maps of the first inputs, with the first two measures of each as its caption.

        Args:
            rows: how many images.

        Returns:
            `matplotlib.figure.Figure`; needs images.
        """
        from kzoo.plots import explanation_sheet

        if self.inputs.ndim != 4:
            raise ValueError(f"There are pictures of images only. Received: {self.inputs.shape}")
        images = self.inputs[:rows]
        titles = [f"class {target}" for target in self.targets[:rows]]
        maps = {name: each[:rows] for name, each in self.maps.items()}
        figure = explanation_sheet(images, maps, titles)
        columns = 1 + len(maps)
        for row in range(len(images)):
            for column, name in enumerate(maps, start=1):
                axis = figure.axes[row * columns + column]
                axis.set_xlabel(self._caption(name, row), fontsize=7, labelpad=2)
        return figure

    def _caption(self, explainer, row):
        shown = [m.name for m in self.measures if explainer in self.values[m.name]][:2]
        return ", ".join(f"{name} {self.values[name][explainer][row]:.2f}" for name in shown)

    def _best(self, measure):
        means = {name: self.mean(measure.name, name) for name in self.maps if name != RANDOM}
        means = {name: mean for name, mean in means.items() if not np.isnan(mean)}
        choose = max if measure.better == "higher" else min
        return choose(means, key=means.get) if means else None

    def _cell(self, measure, explainer, best):
        mean, error = self._summary(measure, explainer)
        if np.isnan(mean):
            return ""
        text = f"**{mean:.3g}**" if explainer == best else f"{mean:.3g}"
        return text if np.isnan(error) else f"{text} ± {error:.1g}"


def _or_none(value):
    return None if np.isnan(value) else value
