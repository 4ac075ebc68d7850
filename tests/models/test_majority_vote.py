import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import f1_score

from kzoo.explain.occlusion import Occlusion
from kzoo.explain.scores import output_score
from kzoo.models.majority_vote import MajorityVoteEnsemble
from kzoo.serving.export import export

pytestmark = pytest.mark.paper(
    "Exploration of Interpretability Techniques for Deep COVID-19 Classification using Chest "
    "X-ray Images"
)


def member(name, labels=3, activation="sigmoid"):
    return keras.Sequential(
        [keras.Input([4, 4, 1]), keras.layers.Flatten(), keras.layers.Dense(labels, activation)],
        name=name,
    )


@pytest.fixture
def members():
    return [member(f"member_{i}") for i in range(3)]


@pytest.fixture
def images(rng):
    return rng.normal(size=(20, 4, 4, 1)).astype("float32")


def given(probabilities):
    """A model that says the same probabilities of every image."""
    model = member(f"says_{'_'.join(map(str, probabilities))}".replace(".", "-"))
    kernel, bias = model.get_weights()
    bias[:] = np.log(np.divide(probabilities, np.subtract(1, probabilities)))
    model.set_weights([0 * kernel, bias])
    return model


def test_votes_by_hand(images):
    says = [given([0.9, 0.6, 0.2]), given([0.4, 0.7, 0.1]), given([0.3, 0.8, 0.4])]
    # One voter of three is certain of the first label; the mean probability, 0.53, would give it.
    np.testing.assert_allclose(
        MajorityVoteEnsemble(says)(images[:1])["votes"], [[1 / 3, 1, 0]], rtol=1e-6
    )
    high = MajorityVoteEnsemble(says, threshold=0.65)(images[:1])["votes"]
    np.testing.assert_allclose(high, [[1 / 3, 2 / 3, 0]], rtol=1e-6)


def test_a_tie_gives_no_label(images):
    ensemble = MajorityVoteEnsemble([given([0.9, 0.9, 0.1]), given([0.1, 0.8, 0.2])])
    votes = ensemble(images[:1])["votes"]
    np.testing.assert_array_equal(votes, [[0.5, 1, 0]])
    f1 = keras.metrics.F1Score(average="micro", threshold=0.5)
    # Keras counts a tie in the same way.
    assert float(f1(np.array([[0.0, 1, 0]]), votes)) == pytest.approx(1)


def test_logits_vote_as_their_probabilities(members, images):
    expected = MajorityVoteEnsemble(members, threshold=0.3)(images)["votes"]
    for model in members:
        model.layers[-1].activation = keras.activations.linear
    votes = MajorityVoteEnsemble(members, threshold=0.3, from_logits=True)(images)["votes"]
    np.testing.assert_array_equal(votes, expected)
    assert 0 < np.mean(votes) < 1


def test_micro_f1_is_that_of_scikit_learn(members, images, rng):
    labels = rng.integers(0, 2, [20, 3])
    ensemble = MajorityVoteEnsemble(members)
    f1 = keras.metrics.F1Score(average="micro", threshold=0.5)
    ensemble.compile(loss={"votes": "mse"}, metrics={"votes": f1})
    measured = ensemble.evaluate(
        images, {"votes": labels.astype("float32")}, batch_size=7, verbose=0, return_dict=True
    )
    majority = np.sum([m.predict(images, verbose=0) > 0.5 for m in members], axis=0) >= 2
    expected = f1_score(labels, majority, average="micro")
    assert measured["f1_score"] == pytest.approx(expected, abs=1e-6)
    assert 0.2 < expected < 0.9


def test_half_precision_does_not_move_the_threshold(images):
    # 0.5005 is 0.5 in bfloat16, and no vote.
    keras.config.set_dtype_policy("mixed_bfloat16")
    x = keras.Input([4, 4, 1])
    constant = keras.layers.Lambda(lambda x: 0 * x[:, 0, 0, :] + 0.5005, dtype="float32")(x)
    votes = MajorityVoteEnsemble([keras.Model(x, constant)])(images)["votes"]
    assert votes.dtype == tf.float32
    np.testing.assert_array_equal(votes, 1)


def test_saved_and_served(members, images, tmp_path):
    ensemble = MajorityVoteEnsemble(members, threshold=0.4)
    ensemble.save(tmp_path / "ensemble.keras")
    again = keras.saving.load_model(tmp_path / "ensemble.keras")
    expected = ensemble(images)["votes"]
    np.testing.assert_array_equal(again(images)["votes"], expected)

    explainer = Occlusion(ensemble, window=2, score=output_score("votes"))
    version = export(ensemble, tmp_path / "ensemble", [explainer])
    served = tf.saved_model.load(str(version)).signatures
    answer = served["serving_default"](inputs=tf.constant(images))
    assert answer.keys() == {"votes"}
    np.testing.assert_array_equal(answer["votes"], expected)
    target = tf.zeros([20], tf.int32)
    explained = served["explain_occlusion"](inputs=tf.constant(images), target=target)
    np.testing.assert_array_equal(explained["score"], expected[:, 0])


def test_refuses_models_that_do_not_fit(members):
    with pytest.raises(ValueError, match="`models` must be built Keras models"):
        MajorityVoteEnsemble([])
    with pytest.raises(ValueError, match=r"same input and outputs .*other: .* -> \(None, 2\)"):
        MajorityVoteEnsemble([*members, member("other", labels=2)])
    with pytest.raises(ValueError, match="different names"):
        MajorityVoteEnsemble([members[0], member("member_0")])
    with pytest.raises(ValueError, match=r"`threshold` must be in \[0, 1\). Received: 1"):
        MajorityVoteEnsemble(members, threshold=1)
