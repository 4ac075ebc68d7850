"""Runs a reproduction over seeds, and writes what it measured into a page."""

import datetime
import inspect
import pathlib
import time
from dataclasses import dataclass, field

import keras
import numpy as np

from kzoo.files import atomic, merge_section

_HEADER = """\
# Reproductions

What papers claim about trained models, run again here and measured. Each section is written by the
command that it names, never by hand; a claim that does not hold stands here like one that does.
"""


@dataclass
class Result:
    """What was measured: {"what": [a number for each seed]}, and the first seed's figure."""

    reproduction: object
    seeds: list
    numbers: dict = field(default_factory=dict)
    figure: object = None
    seconds: float = 0.0


def measure(reproduction, seeds=1, data_dir=None, report=lambda line: None):
    """Runs a `Reproduction` with the seeds 0, 1, ... and returns its `Result`.

    Args:
        seeds: number of seeds.
        data_dir: folder of prepared TFDS sets, for those that need one.
        report: called with a line of text after each seed.

    Raises:
        ValueError: where it needs `data_dir` and there is none.
    """
    if seeds < 1:
        raise ValueError(f"`seeds` must be at least 1. Received: {seeds}")
    options = {}
    if "data_dir" in inspect.signature(reproduction.run).parameters:
        if data_dir is None:
            raise ValueError(
                f"{reproduction.name!r} needs `data_dir`, a folder of prepared TFDS sets."
            )
        options["data_dir"] = data_dir
    result = Result(reproduction, list(range(seeds)))
    begin = time.perf_counter()
    for seed in result.seeds:
        keras.utils.set_random_seed(seed)
        outcome = reproduction.run(seed, **options)
        numbers, figure = outcome if isinstance(outcome, tuple) else (outcome, None)
        for what, number in numbers.items():
            result.numbers.setdefault(what, []).append(float(number))
        result.figure = result.figure or figure
        result.seconds = time.perf_counter() - begin
        said = ", ".join(f"{what} {number:.4g}" for what, number in numbers.items())
        report(f"{reproduction.name}, seed {seed} ({result.seconds:.0f} s): {said}")
    return result


def write(path, result):
    """Merges a `Result` into a Markdown page, its picture into `pictures/` beside the page."""
    path, name = pathlib.Path(path), result.reproduction.name
    picture = ""
    if result.figure is not None:
        folder = path.parent / "pictures" / "reproductions"
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / f"{name}.png") as file:
            result.figure.savefig(file, format="png", dpi=100)
        picture = f"\n![{name}](pictures/reproductions/{name}.png)\n"
    merge_section(path, _HEADER, name, _section(result) + picture)


def _section(result):
    reproduction, count = result.reproduction, len(result.seeds)
    columns = {"mean": np.mean, "least": np.min, "most": np.max} if count > 1 else {"": np.mean}
    rows = [
        f"| {what} | {' | '.join(f'{column(numbers):.4g}' for column in columns.values())} |"
        for what, numbers in result.numbers.items()
    ]
    return "\n".join(
        [
            f"## {_heading(reproduction)}\n",
            f"{reproduction.paper.cite()}. Claim: {reproduction.claim}\n",
            f"{inspect.getdoc(reproduction.run)}\n",
            f"| measured | {' | '.join(columns)} |",
            f"|---|{'---|' * len(columns)}",
            *rows,
            "",
            f"`kzoo reproduce {reproduction.name} --seeds {count}`, "
            f"{datetime.date.today().isoformat()}, {result.seconds:.0f} s.\n",
        ]
    )


def _heading(reproduction):
    """The heading: "prototypes_on_digits" -> "Prototypes on digits"."""
    return reproduction.name.replace("_", " ").capitalize()
