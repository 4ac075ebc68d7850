import json

import keras
import numpy as np
import pytest

from kzoo.explain import GradCAM, InputXGradient, IntegratedGradients, Saliency
from kzoo.explain.explainer import Explainer
from kzoo.explain.faithfulness.compare import compare, default_measures
from kzoo.explain.faithfulness.comparison import Measure
from kzoo.explain.faithfulness.localisation import box_mask

pytestmark = [
    pytest.mark.paper("On the (In)fidelity and Sensitivity of Explanations"),
    pytest.mark.paper("Sanity Checks for Saliency Maps"),
]


@pytest.fixture(scope="module")
def case():
    """A model that finds bright spots, images that have one, and where it is."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    places = rng.integers(0, 6, size=(300, 2))
    masks = box_mask([[(r, c, r + 3, c + 3)] for r, c in places], 8, 8)
    labels = rng.integers(0, 2, size=300)
    spots = np.stack([masks[..., None] * [1, 0.2, 0], masks[..., None] * [0.2, 1, 0]])
    x = (spots[labels, np.arange(300)] + rng.uniform(0, 0.2, size=(300, 8, 8, 3))).astype("float32")
    model = keras.Sequential(
        [
            keras.Input([8, 8, 3]),
            keras.layers.Conv2D(6, 3, padding="same", activation="relu"),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(2, "softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(x, labels, batch_size=50, epochs=15, verbose=0)
    assert (np.argmax(model(x), -1) == labels).mean() > 0.95
    return model, x[:12], masks[:12]


class _Inverted(InputXGradient):
    def attribute(self, values, target, inputs):
        result = super().attribute(values, target, inputs)
        return {**result, "attributions": -result["attributions"]}


@pytest.fixture(scope="module")
def comparison(case):
    model, x, masks = case
    explainers = {
        "integrated gradients": IntegratedGradients(model, steps=8),
        "Grad-CAM": GradCAM(model),
        "inverted": _Inverted(model),
    }
    return compare(explainers, x, masks=masks, seed=1)


def test_all_measures_of_all_explainers(comparison):
    names = [measure.name for measure in comparison.measures]
    assert names == [
        "deletion", "insertion", "pixel perturbation", "sensitivity-n", "infidelity",
        "max-sensitivity", "random weights", "pointing game", "localisation",
    ]  # fmt: skip
    for measure in comparison.measures:
        values = comparison.values[measure.name]
        expected = {"integrated gradients", "Grad-CAM", "inverted"}
        assert set(values) == expected | (set() if measure.kind == "explainer" else {"random"})
        assert all(each.shape == (12,) for each in values.values())
    assert set(comparison.seconds) == {"integrated gradients", "Grad-CAM", "inverted"}
    assert comparison.maps["random"].shape == (12, 8, 8)


def test_the_faithful_beat_the_random_beat_the_inverted(comparison):
    for measure in ("deletion", "insertion", "sensitivity-n", "localisation"):
        ours, random, inverted = (
            comparison.mean(measure, name)
            for name in ("integrated gradients", "random", "inverted")
        )
        if measure == "deletion":
            assert ours < random < inverted
        else:
            assert ours > random > inverted
    assert comparison.mean("infidelity", "integrated gradients") < comparison.mean(
        "infidelity", "random"
    )


def test_means_and_standard_errors():
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2)])
    first = Measure("first", "higher", "maps", lambda m, x, t, maps, seed: x[:, 0])
    gaps = Measure("gaps", "lower", "maps", lambda m, x, t, maps, seed: np.log(x[:, 1]) * 0)
    x = np.array([[1.0, 1], [2, np.e], [6, 2]], "float32")
    result = compare({"gradient": Saliency(model)}, x, measures=[first, gaps])
    assert result.mean("first", "gradient") == 3
    assert result.standard_error("first", "gradient") == pytest.approx(np.sqrt(7 / 3))
    assert result.mean("first", "random") == 3
    with pytest.raises(ValueError, match="pictures of images only"):
        result.figure()


def test_what_is_undefined_is_left_out():
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2)])
    x = np.ones([3, 2], "float32")
    some = Measure("some", "lower", "explainer", lambda *_: np.array([np.nan, 1.0, 2.0]))
    none = Measure("none", "lower", "maps", lambda m, x, *_: np.full(len(x), np.nan))
    result = compare({"gradient": Saliency(model)}, x, measures=[some, none])
    assert result.mean("some", "gradient") == 1.5
    assert np.isnan(result.mean("some", "random"))
    table = json.loads(result.to_json())["explainers"]
    assert table["gradient"]["some"] == {"mean": 1.5, "standard_error": 0.5}
    assert table["gradient"]["none"] == {"mean": None, "standard_error": None}
    assert table["random"]["some"]["mean"] is None
    assert table["random"]["milliseconds"] is None


def test_markdown_marks_the_best_but_never_the_random(comparison):
    lines = comparison.to_markdown().splitlines()
    assert lines[0].startswith("| | deletion ↓ | insertion ↑ |")
    assert lines[0].endswith("ms per input |")
    assert len(lines) == 2 + 4
    assert len({line.count("|") for line in lines}) == 1
    assert sum(line.count("**") for line in lines) == 2 * len(comparison.measures)
    assert "**" not in lines[-1]
    assert lines[-1].startswith("| random |")


def test_the_sheet_has_a_column_for_each_method(comparison):
    figure = comparison.figure(rows=2)
    titles = [axis.get_title() for axis in figure.axes[:5]]
    assert titles == ["image", "integrated gradients", "Grad-CAM", "inverted", "random"]
    values = [comparison.values[name]["Grad-CAM"][1] for name in ("deletion", "insertion")]
    expected = f"deletion {values[0]:.2f}, insertion {values[1]:.2f}"
    assert figure.axes[5 + 2].get_xlabel().replace("\n", ", ") == expected


def test_tables_tokens_and_reports():
    model = keras.Sequential(
        [
            keras.Input([4], dtype="int32"),
            keras.layers.Embedding(9, 3, name="embedding"),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    tokens, said = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], "int32"), []
    explainer = InputXGradient(model, tap="embedding")
    result = compare({"product": explainer}, tokens, measures=default_measures(tokens)[:2],
                     report=said.append)  # fmt: skip
    assert result.maps["product"].shape == (2, 4)
    assert said == ["explaining by product", "measuring deletion", "measuring insertion"]


def test_targets(case):
    model, x, _ = case
    measures = default_measures(x)[:1]
    result = compare({"gradient": Saliency(model)}, x, [0, 1] * 6, measures=measures)
    np.testing.assert_array_equal(result.targets, [0, 1] * 6)
    top = compare({"gradient": Saliency(model)}, x, measures=measures)
    np.testing.assert_array_equal(top.targets, np.argmax(model(x), -1))


def test_errors(case):
    model, x, masks = case
    other = keras.models.clone_model(model)
    with pytest.raises(ValueError, match="must explain one model. Received: 2"):
        compare({"a": Saliency(model), "b": Saliency(other)}, x)
    with pytest.raises(ValueError, match="`explainers` must have one name or more"):
        compare({}, x)
    with pytest.raises(ValueError, match="'random'"):
        compare({"random": Saliency(model)}, x)
    with pytest.raises(ValueError, match="`masks` are needed"):
        compare({"a": Saliency(model)}, x, measures=default_measures(x, masks))
    with pytest.raises(ValueError, match="`better` must be one of higher, lower"):
        Measure("a", "best", "maps", len)

    class Half(Explainer):
        def attribute(self, values, target, inputs):
            return {"attributions": values[:, ::2], **self.scores(values, target, inputs)}

    with pytest.raises(ValueError, match=r"`explainers\['half'\]` must give a value"):
        compare({"half": Half(model)}, x)
