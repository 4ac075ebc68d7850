"""What a recipe becomes: every one of `recipes/`, embeddings, the layers around a model."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from kzoo.data.source import Source
from kzoo.losses.circle import PAPER as CIRCLE
from kzoo.metrics import map_at_r, recall_at_k
from kzoo.serving.export import export
from kzoo.training import run as run_module
from kzoo.training.parts import names
from kzoo.training.recipe import EMBEDDING_LOSSES, RecipeError, check_recipe, load_recipe
from kzoo.training.run import Run

RECIPES = sorted((pathlib.Path(__file__).parents[2] / "recipes").glob("*.yaml"))
BODY = {"depth": 1, "filters": 4, "include_top": False, "pooling": "avg"}
# 179 examples to train and 1618 to test.
TINY = {
    "name": "tiny",
    "data": {"name": "digits", "batch_size": 64, "options": {"test_fraction": 0.9}},
    "model": {"ResidualConvNet": BODY},
    "head": [{"Dense": {"units": 3}}],
    "loss": "SupervisedContrastiveLoss",
    "epochs": 1,
}


def tiny(folder=None, **changes):
    return Run(check_recipe({**TINY, **changes}), folder)


def recipes_on(data):
    paths = [path for path in RECIPES if path.name.startswith(f"{data}_")]
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@recipes_on("digits")
def test_every_recipe_on_digits_takes_a_step(path):
    few = ["data.options={test_fraction: 0.98}", "data.batch_size=10"]
    run = Run(load_recipe(path, few))
    before = [weight.numpy() for weight in run.model.trainable_variables]
    batch = next(iter(run.train_data.dataset(epoch=0)))
    logs = run.model.train_step(batch)
    assert np.isfinite(float(logs["loss"]))
    moved = [
        not np.array_equal(old, new)
        for old, new in zip(before, run.model.trainable_variables, strict=True)
    ]
    # A bias in front of batch norm has no gradient, and neither has what ReLU cuts off.
    assert np.mean(moved) > 0.8


@recipes_on("cifar10")
def test_every_recipe_on_cifar_fits_its_data(path, monkeypatch):
    def images(name, split, **options):
        assert name == "tfds:cifar10"
        pixels = np.random.default_rng(0).integers(0, 256, [20, 32, 32, 3], "uint8")
        return Source(pixels, np.arange(20) % 10, name, split, [str(i) for i in range(10)])

    monkeypatch.setattr(run_module, "load", images)
    run = Run(load_recipe(path, ["data.batch_size=10"]))
    assert run.model.output_shape == (None, 10)
    assert run.class_names == tuple("0123456789")


def test_every_recipe_is_of_a_kind_that_is_tested():
    assert {path.stem.partition("_")[0] for path in RECIPES} == {"cifar10", "digits"}


@pytest.mark.parametrize("loss", EMBEDDING_LOSSES)
def test_every_loss_on_embeddings_trains_a_model_of_any_width(loss):
    run = tiny(loss=loss)
    before = run.model.get_weights()[-2]
    logs = run.model.train_step(next(iter(run.train_data.dataset(epoch=0))))
    assert {"loss", "recall_at_1", "map_at_r"} == set(logs)
    assert not np.array_equal(before, run.model.get_weights()[-2])


@pytest.mark.paper(CIRCLE.title)
def test_embeddings_are_measured_by_what_they_retrieve():
    run = tiny()
    found = run.loop.evaluate(run.validation_data)
    source = run.validation_data.source
    embeddings = np.asarray(run.model(source.features))
    assert embeddings.shape == (1618, 3)
    np.testing.assert_allclose(found["recall_at_1"], recall_at_k(embeddings, source.labels), 1e-3)
    np.testing.assert_allclose(found["map_at_r"], map_at_r(embeddings, source.labels), 1e-3)


@pytest.mark.parametrize(
    "loss",
    [*EMBEDDING_LOSSES, "ArcFaceLoss", "CircleLoss", "SparseCategoricalCrossentropy"],
)
def test_to_losses_on_embeddings_alone_no_output_is_that_of_a_class(loss):
    outputs = np.random.default_rng(0).uniform(0.1, 0.5, [6, 3]).astype("float32")
    labels = np.array([0, 0, 1, 1, 2, 2])
    function = names("loss")[loss]()
    reordered = np.isclose(function(labels, outputs), function(labels, outputs[:, [1, 2, 0]]))
    assert reordered == (loss in EMBEDDING_LOSSES)


def test_embeddings_are_served_under_their_name(tmp_path):
    run = tiny()
    run.train()
    assert run.class_names == ()
    version = export(run.served_model, tmp_path / "tiny", class_names=run.class_names or None)
    images = run.source.features[:4]
    served = tf.saved_model.load(version).signatures["serving_default"](tf.constant(images))
    assert set(served) == {"embeddings"}
    np.testing.assert_allclose(served["embeddings"], run.model(images), rtol=1e-5, atol=1e-6)
    card = json.loads((version / "assets.extra" / "card.json").read_text())
    assert card["class_names"] is None
    assert card["signatures"]["predict_bytes"]["outputs"]["embeddings"]["shape"] == [None, 3]


def test_a_run_of_embeddings_is_resumed(tmp_path):
    tiny(tmp_path).train()
    resumed = Run(check_recipe({**TINY, "epochs": 2}), tmp_path, resume=True)
    assert 0 < resumed.train()["val_map_at_r"] < 1
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all("val_recall_at_1" in row for row in rows)


def test_stem_and_head_make_one_flat_model_with_the_classes_of_the_data():
    run = tiny(
        stem=[{"Resizing": {"height": 5, "width": 6}}],
        head=[{"Dense": {"units": 3, "name": "embedding"}}, {"ArcFaceHead": {"scale": 16}}],
        loss={"ArcFaceLoss": {"scale": 16}},
        precision="mixed_bfloat16",
    )
    assert run.model.input_shape == (None, 8, 8, 1)
    assert run.model.get_layer("stem").output.shape == (None, 5, 6, 4)
    assert run.model.get_layer("embedding").compute_dtype == "bfloat16"
    assert run.model.output_shape == (None, 10)
    assert run.model.outputs[0].dtype == "float32"
    assert run.served_model is run.model
    assert run.class_names == tuple("0123456789")


def test_the_last_layer_of_a_head_is_in_full_precision():
    run = tiny(head=[{"Dense": {"units": 3}}], precision="mixed_bfloat16")
    assert run.model.outputs[0].dtype == "float32"


def test_what_makes_its_own_labels_needs_no_classes_of_the_data():
    head = [
        {"Identity": {"name": "features"}},
        {"ExpMap0": {"name": "embedding", "curvature": 0.1}},
        {"HyperbolicMLR": {"units": 2, "curvature": 0.1}},
    ]
    data = {**TINY["data"], "validation_split": None}
    loss = {"SparseCategoricalCrossentropy": {"from_logits": True}}
    run = tiny(data=data, head=head, loss=loss, method="HypOneClass")
    assert run.class_names == ()
    assert run.served_model is run.model.model
    with pytest.raises(RecipeError, match="gives 2 outputs, but digits has 10 classes"):
        tiny(data=data, head=head, loss=loss)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "ArcFaceLoss"}, "gives 3 outputs, but digits has 10 .* need a loss on embedd"),
        ({"head": ["Dens"]}, "head.0: 'Dens' is not a known layer; did you mean 'Dense'"),
        ({"stem": [{"Resizing": {"hight": 9}}]}, "stem.0.Resizing.hight: .* mean 'height'"),
        ({"head": [{"Dense": {"units": -1}}]}, "head.0.Dense: .*units"),
        ({"head": ["Flatten", {"Conv2D": {"filters": 1, "kernel_size": 1}}]}, "head.1.Conv2D: "),
        ({"stem": ["Flatten"], "model": "FNO"}, "stem: FNO takes no `input_tensor`"),
        ({"metrics": ["RecalAtK"]}, "must be one of RecallAtK"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(RecipeError, match=words):
        tiny(**changes)
