"""`kzoo find-lr RECIPE`."""

import pathlib
from typing import Annotated

import typer


def find_lr(
    recipe: Annotated[pathlib.Path, typer.Argument(help="YAML file, such as those in recipes/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to it.")
    ] = None,
    low: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-6,
    high: Annotated[
        float, typer.Option(help="That of the last, if the loss does not diverge.")
    ] = 10,
    steps: Annotated[int, typer.Option(help="Number of steps.", min=10)] = 200,
    output: Annotated[pathlib.Path, typer.Option("-o", "--output", help="PNG to write.")] = (
        pathlib.Path("learning_rates.png")
    ),
):
    """Train a recipe's model for some steps with a growing learning rate, and draw its loss.

    Examples:

      kzoo find-lr recipes/digits_densenet.yaml -o learning_rates.png

      kzoo find-lr recipes/digits_densenet.yaml 'optimizer={SGD: {momentum: 0.9}}'
    """
    from kzoo.files import atomic
    from kzoo.training import find_learning_rate
    from kzoo.training.recipe import load_recipe
    from kzoo.training.run import Run

    run = Run(load_recipe(recipe, overrides or ()))
    found = find_learning_rate(run.model, run.train_data, low, high, steps, strategy=run.strategy)
    with atomic(output) as file:
        found.figure().savefig(file, format="png", dpi=120)
    print(f"steepest descent            {found.steepest:.2g}")
    print(f"a tenth of the lowest loss  {found.tenth_of_lowest:.2g}")
    print(f"The picture is {output}.")
