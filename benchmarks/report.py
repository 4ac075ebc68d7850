"""What a benchmark says: a table, JSON, and its section of docs/benchmarks.md."""

import argparse
import datetime
import json
import os
import sys
from dataclasses import asdict, dataclass, field

from benchmarks.measure import copy_gbs, gemm_gflops, machine
from kzoo.files import atomic, merge_section

_MOVED = 0.10
_BUSY = 1.2
_HEADER = """\
# Benchmarks

Ratios that were measured side by side, in one process and one run unless a section says otherwise.
Each section is written by the script that it names (`--write`), never by hand; how it is measured
and what it means is in `benchmarks/README.md`.
"""


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Args:
        quick: whether this is a smoke run of seconds, whose numbers mean nothing.
        repetitions: timed calls of each contender; None for what the benchmark takes.
    """

    quick: bool = False
    repetitions: int | None = None

    def pick(self, full, quick):
        return quick if self.quick else full

    def times(self, default):
        """Number of repetitions, where a benchmark takes `default`."""
        return self.repetitions or self.pick(default, 2)


@dataclass(frozen=True)
class Ratio:
    """A measured ratio with its goal; neither `at_least` nor `at_most` if there is none."""

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self):
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    @property
    def verdict(self):
        if not self.goal:
            return ""
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return "met" if low <= self.value <= high else "missed"


@dataclass
class Report:
    """What one benchmark has measured.

    Args:
        name: name of the script.
        title: heading of its section.
    """

    name: str
    title: str
    timings: dict = field(default_factory=dict)
    ratios: list = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    warnings: list = field(default_factory=list)

    def add_timings(self, group, timings):
        """Notes and prints {label: Timing} under the name of what they did."""
        self.timings[group] = timings
        print(f"\n{group}")
        for label, timing in timings.items():
            print(
                f"  {label:44} best {1e3 * timing.best:9.3f} ms, median "
                f"{1e3 * timing.median:9.3f} ms per {timing.unit}",
                flush=True,
            )

    def add_ratio(self, what, value, at_least=None, at_most=None):
        """Notes a ratio, of medians unless `what` says otherwise, and its goal."""
        self.ratios.append(Ratio(what, float(value), at_least, at_most))

    def add_fact(self, what, value):
        """Notes something else that was measured and is worth printing."""
        self.facts[what] = value
        print(f"  {what}: {value}", flush=True)

    def table(self):
        width = max(len(ratio.what) for ratio in self.ratios)
        lines = [f"{ratio.what:{width}}  {_number(ratio.value):>8}" for ratio in self.ratios]
        ends = [f"  {ratio.goal:16} {ratio.verdict}" for ratio in self.ratios]
        return "\n".join((line + end).rstrip() for line, end in zip(lines, ends, strict=True))

    def to_json(self):
        timings = {
            group: {
                label: {**asdict(each), "best": each.best, "median": each.median}
                for label, each in timings.items()
            }
            for group, timings in self.timings.items()
        }
        ratios = [{**asdict(each), "verdict": each.verdict} for each in self.ratios]
        return {
            "benchmark": self.name,
            "timings": timings,
            "ratios": ratios,
            "facts": self.facts,
            "warnings": self.warnings,
        }

    def section(self):
        """The section of docs/benchmarks.md, in Markdown."""
        machine = self.facts["machine"]
        rows = [
            f"| {each.what} | {_number(each.value)} | {each.goal} | {each.verdict} |"
            for each in self.ratios
        ]
        notes = [f"**Warning:** {warning}\n" for warning in self.warnings]
        return "\n".join(
            [
                f"## {self.title}\n",
                "| what | ratio | goal | |",
                "|---|---|---|---|",
                *rows,
                "",
                *notes,
                f"`python -m benchmarks.{self.name}` on {self.facts['date']}: {machine}; "
                f"{self.facts['calibration']}.",
            ]
        )


def main(name, title, measure, description):
    """Runs a benchmark from the command line.

    Args:
        name: name of the script's module in `benchmarks`.
        title: heading of its section in the documentation.
        measure: `measure(options, report)` does the work.
        description: of the script, for `--help`.
    """
    arguments = _parser(name, description).parse_args()
    report = Report(name, title)
    _run(measure, Options(arguments.quick, arguments.repetitions), report)
    print(f"\n{title}\n{report.table()}")
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.json:
        with atomic(arguments.json) as file:
            file.write(json.dumps(report.to_json(), indent=2).encode() + b"\n")
    if arguments.write:
        merge_section(arguments.write, _HEADER, name, report.section())


def _run(measure, options, report):
    """Measures, with the calibration pair before and after."""
    report.facts["date"] = datetime.date.today().isoformat()
    report.facts["machine"] = machine()
    print(report.facts["machine"])
    load = os.getloadavg()[0]
    if load > _BUSY:
        report.warnings.append(f"other programs kept the machine busy (load {load:.1f})")
    before = _calibrate(options)
    measure(options, report)
    after = _calibrate(options)
    moved = max(abs(late / early - 1) for early, late in zip(before, after, strict=True))
    report.add_fact(
        "calibration",
        f"GEMM {before[0]:.0f} GFLOP/s and copy {before[1]:.1f} GB/s before, {after[0]:.0f} and "
        f"{after[1]:.1f} after",
    )
    if moved > _MOVED:
        report.warnings.append(f"the calibration moved by {moved:.0%} during the run")


def _calibrate(options):
    return gemm_gflops(options.pick(2048, 512)), copy_gbs(options.pick(10**8, 10**6))


def _parser(name, description):
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # A smoke run must never end in the documentation.
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quick", action="store_true", help="smoke run; the numbers mean nothing")
    group.add_argument("--write", metavar="FILE", help="Markdown file that gets the new section")
    parser.add_argument("--json", metavar="FILE", help="file for all that was measured, as JSON")
    parser.add_argument(
        "--repetitions", type=_positive, metavar="N", help="timed calls of each contender"
    )
    return parser


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, received {text!r}")
    return int(text)


def _number(value):
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"
