"""`kzoo export MODEL.keras PATH`."""

import pathlib
from typing import Annotated

import typer


def export(
    model: Annotated[pathlib.Path, typer.Argument(help="A .keras file.")],
    path: Annotated[pathlib.Path, typer.Argument(help="saved_models/<name>: the next version.")],
    explainers: Annotated[
        list[str] | None,
        typer.Option("--explain", help="A method to serve, such as grad_cam; repeat for more."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes, separated by commas.")
    ] = None,
    overlays: Annotated[
        bool, typer.Option(help="Also serve each method from image bytes to an overlay as PNG.")
    ] = False,
    samples: Annotated[
        list[pathlib.Path] | None,
        typer.Option("--sample", help="A picture, or a row as JSON, to try; repeat for more."),
    ] = None,
):
    """Export a saved model, with explanations as signatures, for TensorFlow Serving.

    Example:

      kzoo export model.keras saved_models/flowers --explain grad_cam --explain saliency
    """
    import keras

    from kzoo.papers import load_all
    from kzoo.serving.export import export as export_model

    load_all()
    loaded = keras.saving.load_model(model, compile=False)
    names = classes.split(",") if classes else None
    version = export_model(
        loaded, path, explainers or (), class_names=names, overlays=overlays, samples=samples
    )
    print(version)
