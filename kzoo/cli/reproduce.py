"""`kzoo reproduce NAME`: measure what a paper claims."""

import pathlib
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def reproduce(
    chosen: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Which; none lists them.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds: 0, 1, ...", min=1)] = 1,
    data_dir: Annotated[
        pathlib.Path | None, typer.Option(help="Folder of prepared TFDS sets.")
    ] = None,
    output: Annotated[
        pathlib.Path | None,
        typer.Option("--write", help="Markdown page that gets the section and the picture."),
    ] = None,
):
    """Run a claim of a paper about trained models again and measure it.

    Examples:

      kzoo reproduce

      kzoo reproduce prototypes_on_digits --seeds 3 --write docs/reproductions.md
    """
    from kzoo import reproductions

    if not chosen:
        table = Table("name", "claim", "paper", box=None)
        for name in reproductions.names():
            each = reproductions.find(name)
            table.add_row(name, each.claim, f"{each.paper.authors[0]} et al., {each.paper.year}")
        Console().print(table)
        return
    for each in [reproductions.find(name) for name in chosen]:
        result = reproductions.measure(each, seeds, data_dir, report=print)
        if output is not None:
            reproductions.write(output, result)
