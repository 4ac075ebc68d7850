"""`kzoo papers`, `kzoo list KIND`, `kzoo show NAME`."""

import inspect
import json
import pathlib
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def papers(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, one object a paper.")] = False,
):
    """List the papers, with the parts, tests and recipes that each has."""
    from kzoo import papers as register

    tests, recipes = register.find_tests("."), register.find_recipes(".")
    rows = [
        {
            "title": paper.title,
            "authors": list(paper.authors),
            "year": paper.year,
            "arxiv": paper.arxiv,
            "parts": [part.path for part in parts],
            "tests": tests.get(paper.title, []),
            "recipes": sorted({r for part in parts for r in recipes.get(part.name, [])}),
        }
        for paper, parts in register.papers().items()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("paper", "year", "parts", title=f"{len(rows)} papers")
    for row in rows:
        parts = ", ".join(path.removeprefix("kzoo.") for path in row["parts"])
        table.add_row(row["title"], str(row["year"]), parts)
    Console().print(table)


def list_parts(
    kind: Annotated[str, typer.Argument(help="layers, models, optimizers, explain, ... or all.")],
    pattern: Annotated[str, typer.Argument(help="A pattern of names, such as '*dense*'.")] = "*",
):
    """List the parts of a kind, a line each."""
    from kzoo.papers import components

    table = Table("name", "what it is", box=None)
    for part in components(None if kind == "all" else kind, pattern):
        table.add_row(part.path, part.summary)
    Console().print(table)


def show(name: Annotated[str, typer.Argument(help="The name of a part, such as AdEMAMix.")]):
    """Show a part: its documentation, papers, tests and recipes."""
    from kzoo import papers as register

    found = register.components(pattern=name)
    if not found:
        raise ValueError(f"There is no part {name!r}; see: kzoo list all")
    tests, recipes = register.find_tests("."), register.find_recipes(".")
    for part in found:
        print(f"{part.path}{inspect.signature(part.target)}\n")
        print(inspect.getdoc(part.target), "\n")
        for paper in part.papers:
            print(f"paper:   {paper.cite()}")
            for test in tests.get(paper.title, []):
                print(f"test:    {test}")
        if part.not_served:
            print(f"served:  no, {part.not_served}")
        for recipe in recipes.get(part.name, []):
            print(f"recipe:  {recipe}")
        print(f"source:  {pathlib.Path(inspect.getsourcefile(part.target)).name}\n")
