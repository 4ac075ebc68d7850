"""Examples that lie beside an export, for people to try it on: `assets.extra/samples`."""

import pathlib
import re

import numpy as np
import tensorflow as tf

FOLDER = "samples"
MAX_BYTES = 256 * 1024
_NAME = re.compile(r"[\w][\w .-]*\.(png|jpe?g|json)", re.IGNORECASE)


def check_samples(samples):
    """Returns {file name: bytes}; refuses what the page would not show.

    Args:
        samples: as for `kzoo.serving.export.export`.
    """
    if not isinstance(samples, dict):
        files = map(pathlib.Path, samples or ())
        samples = {file.name: file.read_bytes() for file in files}
    for name, content in samples.items():
        if not _NAME.fullmatch(name) or not 0 < len(content) <= MAX_BYTES:
            raise ValueError(
                f"`samples` must be .png, .jpg or .json files of at most {MAX_BYTES // 1024} KiB. "
                f"Received: {name!r} of {len(content)} bytes"
            )
    return samples


def write_samples(folder, samples):
    """Writes checked samples into a new folder."""
    folder.mkdir()
    for name, content in samples.items():
        (folder / name).write_bytes(content)


def samples_of(source, count=4):
    """Returns {file name: PNG}, one example of each of the first classes of images.

    Args:
        source: `kzoo.data.Source`. What is no uint8 image of 1 or 3 channels gives none.
        count: number of classes.
    """
    images = source.features
    fits = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4
    if source.decode is not None or not fits or images.shape[-1] not in (1, 3):
        return {}
    samples = {}
    for label, name in list(enumerate(source.class_names))[:count]:
        found = np.flatnonzero(source.labels == label)
        if len(found):
            file = re.sub(r"[^\w.-]+", "_", f"{label}_{name}") + ".png"
            samples[file] = tf.io.encode_png(images[found[0]]).numpy()
    return samples
