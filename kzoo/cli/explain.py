"""`kzoo explain IMAGE`: from a server, or from an export without one."""

import pathlib
from typing import Annotated

import numpy as np
import typer


def explain(
    images: Annotated[
        list[pathlib.Path] | None,
        typer.Argument(help="JPEG, PNG, or .npy with one input.", exists=True),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="HOST:PORT (gRPC), or http://HOST:PORT (REST).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model on the server.")] = None,
    saved_model: Annotated[
        pathlib.Path | None, typer.Option(help="A version folder, instead of a server.")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="Repeat for several. Default: all of the model."),
    ] = None,
    target: Annotated[
        int | None, typer.Option(help="Class to explain. Default: the model's top class.")
    ] = None,
    rescale: Annotated[
        tuple[float, float], typer.Option(help="Scale and offset from pixels to the model.")
    ] = (1 / 255, 0.0),
    output: Annotated[pathlib.Path, typer.Option("-o", "--output", help="PNG to write.")] = (
        pathlib.Path("explanation.png")
    ),
    compare: Annotated[
        pathlib.Path | None,
        typer.Option(help="A .keras file: score methods on it with --data, without images."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="With --compare: name of a data set, such as digits.")
    ] = None,
    data_dir: Annotated[
        pathlib.Path | None, typer.Option(help="With --compare: folder of prepared TFDS sets.")
    ] = None,
    count: Annotated[int, typer.Option(help="With --compare: number of examples.", min=1)] = 32,
):
    """Explain predictions on images: writes a sheet with a map for each method.

    Examples:

      kzoo explain --server localhost:8500 --model digits_densenet -m grad_cam seven.png -o map.png

      kzoo explain --saved-model saved_models/digits_densenet/1 seven.png

      kzoo explain --compare model.keras --data digits -m saliency -m grad_cam --rescale 1 0
    """
    if compare is not None:
        if data is None or images:
            raise ValueError("--compare needs --data, the name of a data set, and no images.")
        from kzoo.cli.compare import compare as run

        run(compare, data, data_dir, methods, count, rescale, output)
        return
    if not images:
        raise ValueError("Pass one image at least, or --compare.")
    if (server is None) == (saved_model is None):
        raise ValueError("Pass exactly one of --server and --saved-model.")
    if server is not None and model is None:
        raise ValueError("--server needs --model, the name of the model on the server.")

    from kzoo import plots

    with _open(server, model, saved_model) as asked:
        shape = _image_shape(asked.metadata()["serving_default"])
        inputs = np.stack([read_image(path, shape, rescale) for path in images])
        methods = methods or asked.methods()
        results = {method: asked.explain(method, inputs, target) for method in methods}
        predicted = asked.predict(inputs)
        names = asked.class_names
    captions = [
        caption(row, names) for row in predicted.get("probabilities", predicted.get("logits"))
    ]
    maps = {method: result["attributions"] for method, result in results.items()}
    plots.explanation_sheet(inputs, maps, captions).savefig(output, dpi=150)
    for path, text in zip(images, captions, strict=True):
        print(f"{path}: {text}")
    print(f"The sheet is {output}.")


def _open(server, model, saved_model):
    if server is None:
        from kzoo.serving.local import LocalModel

        return LocalModel(saved_model)

    from kzoo.client import Client

    client = Client(server, model, timeout=120)
    client.class_names = None
    return client


def _image_shape(signature):
    """(height, width, channels) of the model's image."""
    shapes = [info.shape for info in signature.inputs.values()]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ValueError(f"The model does not take one image. Its inputs have shapes {shapes}.")
    return tuple(shapes[0][1:])


def read_image(path, shape, rescale):
    """Reads an image file into the model's [height, width, channels], float32."""
    if path.suffix == ".npy":
        array = np.load(path, allow_pickle=False)
        if array.shape != shape:
            raise ValueError(f"{path} must have shape {shape}. Received: {array.shape}")
        return array.astype("float32")
    from PIL import Image

    height, width, channels = shape
    with Image.open(path) as image:
        image = image.convert("L" if channels == 1 else "RGB").resize((width, height))
    scale, offset = rescale
    return (np.asarray(image, "float32") * scale + offset).reshape(shape)


def caption(scores, class_names):
    """The top class of a row of scores, by name where the names are known."""
    top = int(np.argmax(scores))
    return f"{class_names[top] if class_names else f'class {top}'}  {scores[top]:.1%}"
