"""Draws the pictures of docs/explain.md: `tools/explain_gallery.py MODEL.keras --data-dir DIR`.

MODEL.keras is what `kzoo train recipes/cifar10_preact_resnet.yaml` has trained. The table and the
sheet of methods are those of `kzoo explain --compare`.
"""

import argparse
import pathlib

import keras
from PIL import Image

from kzoo.data import load
from kzoo.explain import DendroMap
from kzoo.explain import visualization as vis
from kzoo.explain.visualization.dendromap_figure import dendromap_figure

PICTURES = pathlib.Path(__file__).resolve().parents[1] / "docs" / "pictures"
BYTES = (0.0, 255.0)


def classes_as_seen(model, images, names):
    """What each class looks like to the model: by ascent on pixels, and by MACO."""
    objective = vis.class_logit(model, range(len(names)))
    ascent = vis.activation_maximization(
        objective,
        mean=images.mean(),
        noise=10.0,
        optimizer=keras.optimizers.Adam(4.0),
        jitter=2,
        blur=(0.8, 0.3),
        normalize=True,
        bounds=BYTES,
    )
    maco = vis.maco(
        objective,
        vis.natural_spectrum(images, (96, 96)),
        crops=16,
        crop_size=(0.3, 0.6),
        bounds=BYTES,
    )
    drawn = vis.visualization_sheet(ascent["images"], names, columns=5)
    natural = vis.visualization_sheet(maco["images"], names, maco["transparency"], columns=5)
    return {"explain_ascent": drawn, "explain_maco": natural}


def data_as_seen(model, source):
    """The test images as the model groups them, with its errors."""
    dendromap = DendroMap.from_model(
        model, source.features, source.labels, class_names=source.class_names
    )
    return {"explain_dendromap": dendromap_figure(dendromap)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data-dir")
    arguments = parser.parse_args()
    model = keras.saving.load_model(arguments.model, compile=False)
    source = load("tfds:cifar10", "test", data_dir=arguments.data_dir)
    figures = {
        **classes_as_seen(model, source.features[:1000], source.class_names),
        **data_as_seen(model, source.take(1000)),
    }
    for name, figure in figures.items():
        path = PICTURES / f"{name}.png"
        figure.savefig(path, dpi=80)
        # A palette takes a third of the bytes.
        with Image.open(path) as picture:
            picture.convert("RGB").quantize(128).save(path, optimize=True)
        print(f"{name}.png")


if __name__ == "__main__":
    main()
