"""`kzoo explain --compare MODEL.keras`: which method is true of this model?"""

import numpy as np

from kzoo.files import atomic


def compare(model, data, data_dir, methods, count, rescale, output):
    """Scores methods on a model and a data set; writes a table and a sheet beside each other.

    Args:
        model: path of a .keras file.
        data: name of a data set, see `kzoo.data.load`; its test part is used.
        data_dir: folder of prepared TFDS sets, or None.
        methods: names of explainers; None for those of images that need no arguments.
        count: number of examples.
        rescale: (scale, offset) from the set's values to the model.
        output: the sheet, a .png; the table is the .md of the same name.
    """
    import keras

    from kzoo.data import load
    from kzoo.explain.faithfulness import compare as compare_explainers
    from kzoo.explain.names import by_name
    from kzoo.papers import load_all

    load_all()
    loaded = keras.saving.load_model(model, compile=False)
    source = load(data, "test", data_dir=data_dir).take(count)
    scale, offset = rescale
    x = np.asarray(source.features, "float32") * scale + offset
    explainers = {name: by_name(name)(loaded) for name in methods or _DEFAULT}
    comparison = compare_explainers(explainers, x, np.asarray(source.labels), report=print)
    table = output.with_suffix(".md")
    with atomic(output) as file:
        comparison.figure().savefig(file, format="png", dpi=100)
    with atomic(table) as file:
        file.write(comparison.to_markdown().encode())
    print(comparison.to_markdown())
    print(f"The table is {table}, the sheet {output}.")


_DEFAULT = (
    "saliency", "input_x_gradient", "smooth_grad", "integrated_gradients", "guided_backprop",
    "grad_cam", "full_grad", "occlusion", "rise",
)  # fmt: skip
