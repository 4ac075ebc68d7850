import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

from kzoo.cli.main import app
from kzoo.client import Client
from kzoo.training.recipe import RecipeError

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "digits_densenet.yaml")
SMALL = [
    "model.DenseNetBC.depth=10", "model.DenseNetBC.growth_rate=4", "epochs=1",
    "data.batch_size=256", "export.explainers=[Saliency, GradCAM]",
]  # fmt: skip


def kzoo(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def output(folder):
    """What `kzoo train` has printed, of a run that left its files in `folder`."""
    saved = ["--run-dir", folder / "run", "--export-to", folder / "saved"]
    return kzoo("train", RECIPE, *SMALL, *saved)


@pytest.fixture(scope="module")
def version(output, folder):
    return folder / "saved" / "digits_densenet" / "1"


@pytest.fixture
def digit(folder):
    from sklearn.datasets import load_digits

    pixels = (load_digits().images[3] / 16 * 255).astype("uint8")[..., np.newaxis]
    path = folder / "three.png"
    path.write_bytes(tf.io.encode_png(pixels).numpy())
    return path


def test_train_leaves_a_folder_that_tells_how_it_went(output, folder):
    run = folder / "run"
    assert {path.name for path in run.iterdir()} == {
        "checkpoints", "curves.png", "environment.json", "metrics.csv", "metrics.jsonl",
        "recipe.yaml",
    }  # fmt: skip
    row = json.loads((run / "metrics.jsonl").read_text())
    assert row["epoch"] == 1
    assert row["step"] == 6
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= row.keys()
    assert json.loads((run / "environment.json").read_text())["tensorflow"] == tf.__version__
    assert "Exported to" in output


def test_the_export_cites_its_papers(version):
    card = json.loads((version / "assets.extra" / "card.json").read_text())
    cited = " ".join(card["papers"])
    for title in ("Densely Connected", "AdEMAMix", "Grad-CAM", "Saliency Maps"):
        assert title in cited
    assert card["class_names"] == [str(digit) for digit in range(10)]
    assert card["recipe"]["optimizer"]["AdEMAMix"]["weight_decay"] == 0.01


def test_explain_without_a_server(version, digit, folder):
    sheet = folder / "local.png"
    output = kzoo("explain", "--saved-model", version, digit, "-o", sheet)
    assert "three.png: " in output
    assert sheet.stat().st_size > 5000


def test_explain_from_a_server_over_both_protocols(version, digit, folder):
    from kzoo.serving.server import ModelServer

    with ModelServer(
        model_name="digits", base_path=str(version.parent), grpc_port=0, rest_port=0
    ) as server:
        for address in (f"127.0.0.1:{server.grpc_port}", f"http://127.0.0.1:{server.rest_port}"):
            asked = ["--server", address, "--model", "digits", "--method", "grad_cam"]
            kzoo("explain", *asked, digit, "-o", folder / "served.png")
            with Client(address, "digits") as client:
                assert client.methods() == ["grad_cam", "saliency"]
    assert (folder / "served.png").exists()


def test_export_a_keras_file(folder):
    import keras

    model = keras.Sequential(
        [keras.Input([8, 8, 1]), keras.layers.Conv2D(2, 3), keras.layers.Flatten(),
         keras.layers.Dense(2, "softmax")]
    )  # fmt: skip
    model.save(folder / "model.keras")
    target = folder / "saved" / "two"
    kzoo("export", folder / "model.keras", target, "--explain", "grad_cam", "--classes", "a,b")
    card = json.loads((target / "1" / "assets.extra" / "card.json").read_text())
    assert card["class_names"] == ["a", "b"]
    assert "explain_grad_cam" in card["signatures"]


def test_dry_run_shows_the_plan_and_writes_nothing(folder):
    output = kzoo("train", RECIPE, *SMALL, "--run-dir", folder / "dry", "--dry-run")
    assert "batch_size: 256" in output
    assert "6 optimizer steps; memory: about" in output
    assert not (folder / "dry").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=DenseNetCB", "model: 'DenseNetCB' is not a known model; did you mean 'DenseNetBC'"),
        ("optimizer={Grams: {beta1: 0.9}}", "did you mean 'beta_1'?"),
        ("optimizer={Grams: {beta_1: 2}}", "optimizer.Grams: `beta_1` must be in [0, 1)"),
        ("data.name=digit", "digits"),
        ("model.DenseNetBC.classes=3", "gives 3 outputs, but digits has 10 classes"),
        ("callbacks=[EarlyStoping]", "callbacks.0: 'EarlyStoping' is not a known callback"),
        ("export.explainers=[GradCam]", "did you mean 'GradCAM'?"),
    ],
)
def test_impossible_recipes_are_refused_with_one_message(override, words):
    with pytest.raises(RecipeError) as error:
        kzoo("train", RECIPE, override, "--dry-run")
    assert words in str(error.value)


def test_a_run_is_not_overwritten(output, folder):
    with pytest.raises(RecipeError, match="holds a run already. Pass --resume"):
        kzoo("train", RECIPE, *SMALL, "--run-dir", folder / "run")


def test_the_register_can_be_read():
    rows = json.loads(kzoo("papers", "--json"))
    by_title = {row["title"]: row for row in rows}
    row = by_title["Densely Connected Convolutional Networks"]
    assert "kzoo.models.DenseNet121" in row["parts"]
    assert "AdEMAMix" in kzoo("list", "optimizers", "*mix*")
    shown = kzoo("show", "SAM")
    assert "arxiv.org/abs/2010.01412" in shown
    assert "rho" in shown
    with pytest.raises(ValueError, match="There is no part 'Sum'"):
        kzoo("show", "Sum")


def test_methods_are_compared_on_a_model(folder):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input([8, 8, 1]), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    model.save(folder / "linear.keras")
    sheet = folder / "compared.png"
    asked = ["--compare", folder / "linear.keras", "--data", "digits", "--count", 4]
    output = kzoo("explain", *asked, "-m", "saliency", "-m", "occlusion", "-o", sheet)
    table = sheet.with_suffix(".md").read_text()
    assert table in output
    for name in ("saliency", "occlusion", "random", "deletion", "infidelity"):
        assert name in table
    assert sheet.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="--compare needs --data"):
        kzoo("explain", *asked[:2])


def test_finds_a_learning_rate(folder):
    picture = folder / "rates.png"
    output = kzoo("find-lr", RECIPE, *SMALL[:2], "--steps", 12, "-o", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "steepest descent" in output
