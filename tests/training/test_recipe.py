import pathlib

import pytest

from kzoo.training.recipe import RecipeError, check_recipe, load_recipe, to_yaml

RECIPES = sorted((pathlib.Path(__file__).parents[2] / "recipes").glob("*.yaml"))
MINIMAL = {"name": "r", "data": {"name": "digits"}, "model": "DenseNetBC"}


def refusal(**changes):
    with pytest.raises(RecipeError) as error:
        check_recipe({**MINIMAL, **changes})
    return str(error.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_its_defaults_written_out_read_the_same(path, tmp_path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_a_part_is_a_name_or_a_name_with_arguments():
    recipe = check_recipe({**MINIMAL, "optimizer": {"Grams": {"learning_rate": 0.1}}})
    assert recipe.model.name == "DenseNetBC"
    assert recipe.model.arguments == {}
    assert recipe.optimizer.arguments == {"learning_rate": 0.1}


def test_metrics_that_are_left_out_follow_the_loss():
    accuracy = check_recipe(MINIMAL).metrics
    retrieval = check_recipe({**MINIMAL, "loss": "UnifiedPairLoss"}).metrics
    assert [metric.name for metric in accuracy] == ["SparseCategoricalAccuracy"]
    assert [metric.name for metric in retrieval] == ["RecallAtK", "MeanAveragePrecisionAtR"]
    assert check_recipe({**MINIMAL, "loss": "UnifiedPairLoss", "metrics": []}).metrics == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 3}, "epoch: is not a key of a recipe; did you mean 'epochs'?"),
        ({"data": {"name": "digits", "batchsize": 3}}, "did you mean 'batch_size'?"),
        ({"data": {}}, "data.name: is missing"),
        ({"epochs": "ten"}, "epochs: Input should be a valid integer (received: 'ten')"),
        ({"epochs": 0}, "epochs: Input should be greater than 0 (received: 0)"),
        ({"precision": "float8"}, "precision: Input should be 'float32'"),
        ({"model": {"A": {}, "B": {}}}, "model: must be the name of a part, or {Name:"),
        ({"accumulate": 5}, "accumulate: 5 does not divide data.batch_size 32"),
        ({"distribution": {"strategy": "parameter_server"}}, "asynchronous updates could neither"),
        ({"distribution": {"tpu": "local"}}, "is for distribution.strategy 'tpu'"),
        (
            {"jit_compile": True, "distribution": {"strategy": "mirrored"}},
            "jit_compile: does not work with several replicas on CPUs",
        ),
        (
            {"schedule": "LinearDecay", "optimizer": {"Adam": {"learning_rate": 1.0}}},
            "schedule: gives the learning rate, and so does",
        ),
        ({"name": "../escape"}, "name: String should match pattern"),
        (
            {"loss": "Circle", "metrics": ["RecallAtK", "SparseCategoricalAccuracy"]},
            "metrics.1: with Circle, a loss on embeddings, it must be one of RecallAtK, Mean",
        ),
        (
            {"loss": "SupervisedContrastiveLoss", "export": {"explainers": ["Saliency"]}},
            "export.explainers: explain the score of a class, and SupervisedContrastiveLoss",
        ),
        ({"method": "HypOneClass"}, "data.validation_split: must be null with method HypOneClass"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(changes, words):
    assert words in refusal(**changes)


def test_all_complaints_come_at_once():
    message = refusal(epoch=3, precision="half")
    assert "epoch:" in message
    assert "precision:" in message


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(to_yaml(check_recipe(MINIMAL)))
    return path


def test_overrides_reach_sections_and_parts(file):
    recipe = load_recipe(
        file,
        [
            "epochs=3",
            "data.batch_size=16",
            "model.DenseNetBC.depth=22",
            "method={SAM: {rho: 0.1}}",
            "data.validation_split=null",
        ],
    )
    assert (recipe.epochs, recipe.data.batch_size) == (3, 16)
    assert recipe.model.arguments == {"depth": 22}
    assert (recipe.method.name, recipe.method.arguments) == ("SAM", {"rho": 0.1})
    assert recipe.data.validation_split is None


def test_bad_overrides_and_files_are_refused(file):
    with pytest.raises(RecipeError, match=r"written key.sub=value. Received: 'epochs'"):
        load_recipe(file, ["epochs"])
    with pytest.raises(RecipeError, match="epochs.deep: 'epochs' is not a section"):
        load_recipe(file, ["epochs.deep=1"])
    with pytest.raises(RecipeError, match=r"There is no recipe .*s.yaml. Did you mean .*r.yaml"):
        load_recipe(file.with_name("s.yaml"))
    file.write_text("name: [")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(file)
