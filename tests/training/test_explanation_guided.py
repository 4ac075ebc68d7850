import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import GradCAM, IntegratedGradients
from kzoo.explain.expected_gradients import BatchExpectedGradients
from kzoo.explain.input_x_gradient import InputXGradient
from kzoo.losses.guidance import EnergyLoss, L1Loss
from kzoo.regularizers.attribution_priors import AttributionGini, AttributionTotalVariation
from kzoo.training import Loop
from kzoo.training.explanation_guided import ExplanationGuided

pytestmark = [
    pytest.mark.paper("Using Explanations to Guide Models"),
    pytest.mark.paper(
        "Improving performance of deep learning models with axiomatic attribution priors and "
        "expected gradients"
    ),
]


def cnn(activation="softplus"):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input([6, 6, 2]),
            keras.layers.Conv2D(4, 3, activation=activation, name="first"),
            keras.layers.Conv2D(5, 3, activation=activation, name="second"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )


def examples(count=6, annotated=(True, False, True)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 6, 6, 2)).astype(keras.config.floatx())
    mask = rng.integers(0, 2, (count, 6, 6))
    mask[~np.resize(annotated, count)] = -1
    return x, {"label": rng.integers(0, 3, count), "mask": mask}


def guided(explainer=InputXGradient, penalty=None, weight=0.7, model=None, **options):
    model = model or cnn()
    penalty = EnergyLoss() if penalty is None else penalty
    trainer = ExplanationGuided(model, explainer(model, **options), penalty, weight=weight)
    return compiled(trainer)


def compiled(trainer, optimizer=None, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(optimizer or keras.optimizers.SGD(0.1), loss, **options)
    return trainer


def total_loss(trainer, x, y):
    outputs = trainer(x, training=True)
    return trainer.compute_loss(x=x, y=y, y_pred=outputs, training=True)


def assert_equal_weights(a, b, **tolerance):
    for ours, theirs in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, **tolerance)


@pytest.mark.parametrize(
    ("explainer", "penalty", "options"),
    [
        (InputXGradient, EnergyLoss, {}),
        (InputXGradient, EnergyLoss, {"tap": "first"}),
        (GradCAM, L1Loss, {"upsample": False}),
        (IntegratedGradients, EnergyLoss, {"steps": 3, "rows": 6}),
        (InputXGradient, AttributionGini, {}),
        (InputXGradient, AttributionTotalVariation, {}),
    ],
    ids=["input", "inner", "grad_cam", "path", "gini", "variation"],
)
def test_parameter_gradients_are_those_of_finite_differences(float64, explainer, penalty, options):
    trainer = guided(explainer, penalty(), **options)
    x, y = examples()
    if options.get("tap") or options.get("upsample") is False:
        size = 2 if explainer is GradCAM else 4
        y["mask"] = y["mask"][:, :size, :size]
    loss = tf.function(lambda: total_loss(trainer, x, y))
    with tf.GradientTape() as tape:
        value = loss()
    weights = trainer.trainable_variables
    gradients = tape.gradient(value, [w.value for w in weights])
    rng = np.random.default_rng(3)
    directions = [rng.normal(size=w.shape) for w in weights]
    slope = sum(np.sum(g * d) for g, d in zip(gradients, directions, strict=True))
    values = []
    for step in (1e-6, -2e-6):  # short, so as to cross no kink of the penalty
        for weight, direction in zip(weights, directions, strict=True):
            weight.assign_add(step * direction)
        values.append(loss())
    np.testing.assert_allclose((values[0] - values[1]) / 2e-6, slope, rtol=1e-6)


def test_relu_networks_have_the_gradient_too(float64):
    trainer = guided(model=cnn("relu"))
    x, y = examples()
    kernel = trainer.trainable_variables[0]
    loss = tf.function(lambda: total_loss(trainer, x, y))
    with tf.GradientTape() as tape:
        value = loss()
    gradient = tape.gradient(value, kernel.value).numpy()
    start = kernel.numpy()
    for index in [(0, 0, 0, 0), (1, 2, 1, 3), (2, 1, 0, 2)]:
        offset = np.zeros_like(start)
        offset[index] = 1e-6
        values = [kernel.assign(start + sign * offset) is None or loss() for sign in (1, -1)]
        np.testing.assert_allclose((values[0] - values[1]) / 2e-6, gradient[index], rtol=1e-5)


def test_the_penalty_is_the_mean_over_annotated_rows_of_the_labels_attributions(float64):
    trainer = guided()
    x, y = examples()
    maps = InputXGradient(trainer.model)(x, target=y["label"])["attributions"].numpy().sum(-1)
    positive = np.maximum(maps, 0)
    energy = (positive * y["mask"]).sum((1, 2)) / positive.sum((1, 2))
    expected = -energy[[0, 2, 3, 5]].mean()
    penalty = trainer.explanation_penalty(tf.constant(x), y, trainer(x))
    np.testing.assert_allclose(penalty, expected, rtol=1e-10)
    history = trainer.fit(x, y, batch_size=6, verbose=0).history
    np.testing.assert_allclose(history["penalty"], [expected], rtol=1e-10)


def test_no_annotated_row_is_the_plain_task():
    x, y = examples(annotated=[False])
    ours, plain = guided(), compiled(cnn())
    ours.fit(x, y, batch_size=3, shuffle=False, verbose=0)
    plain.fit(x, y["label"], batch_size=3, shuffle=False, verbose=0)
    assert_equal_weights(ours.model, plain, atol=1e-7)


def test_targets_come_from_the_label_or_from_the_data(float64):
    trainer = guided(penalty=AttributionGini())
    x, y = examples()
    outputs = trainer(x)

    def penalty(y):
        return float(trainer.explanation_penalty(tf.constant(x), y, outputs))

    label = y["label"]
    assert penalty(label) == penalty(np.eye(3)[label]) == penalty(label[:, None])
    others = {"label": label, "target": (label + 1) % 3}
    assert penalty(others) == penalty((label + 1) % 3) != penalty(label)
    binary = guided(
        penalty=AttributionGini(),
        model=keras.Sequential([keras.Input([6, 6, 2]), *cnn().layers[:-1], keras.layers.Dense(1)]),
    )
    value = binary.explanation_penalty(tf.constant(x), np.ones([6, 1]), binary(x))
    assert np.isfinite(value)


@pytest.mark.parametrize("penalty", [EnergyLoss, AttributionGini], ids=["masks", "prior"])
def test_two_replicas_equal_one_device(float64, mirrored, penalty):
    # Five rows, of which the replicas see three and two, with two and one annotated.
    x, y = examples(9, annotated=(True, False, True, False, True))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    trainers = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            trainer = guided(penalty=penalty())
        history = Loop(trainer, dataset, epochs=2, strategy=strategy).run().history
        trainers.append((trainer, history))
    (one, one_history), (two, two_history) = trainers
    assert_equal_weights(one, two, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(one_history["penalty"], two_history["penalty"], rtol=1e-9)
    np.testing.assert_allclose(one_history["loss"], two_history["loss"], rtol=1e-9)


def test_batch_references_train_on_replicas(mirrored):
    x, y = examples(8)
    dataset = tf.data.Dataset.from_tensor_slices((x, y["label"])).batch(4)
    with mirrored.scope():
        trainer = guided(BatchExpectedGradients, AttributionTotalVariation(), weight=0.1)
    history = Loop(trainer, dataset, epochs=3, strategy=mirrored).run().history
    assert history["penalty"][-1] < history["penalty"][0]


@pytest.mark.parametrize(
    ("explainer", "penalty", "activation"),
    [
        (InputXGradient, EnergyLoss, "softplus"),
        (GradCAM, EnergyLoss, "softplus"),
        # XLA draws other places on the way, which do not matter to a linear network.
        (BatchExpectedGradients, AttributionGini, "linear"),
    ],
    ids=["input", "grad_cam", "expected"],
)
def test_xla_takes_the_same_steps(explainer, penalty, activation):
    x, y = examples()
    trainers = []
    for jit_compile in (False, True):
        trainer = guided(explainer, penalty(), model=cnn(activation))
        compiled(trainer, jit_compile=jit_compile)
        trainer.fit(x, y, epochs=2, batch_size=6, shuffle=False, verbose=0)
        trainers.append(trainer)
    assert_equal_weights(*trainers, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("explainer", "penalty", "options"),
    [
        (InputXGradient, EnergyLoss, {"tap": "first"}),
        (BatchExpectedGradients, AttributionTotalVariation, {"samples": 2}),
    ],
    ids=["masks", "expected"],
)
def test_a_loaded_trainer_takes_the_same_next_step(tmp_path, explainer, penalty, options):
    x, y = examples()
    trainer = guided(explainer, penalty(), **options)
    y = {**y, "mask": y["mask"][:, :4, :4]}
    trainer.fit(x, y, shuffle=False, verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    again = keras.saving.load_model(tmp_path / "trainer.keras")
    assert again.explainer.model is again.model
    for each in (trainer, again):
        each.fit(x, y, shuffle=False, verbose=0)
    assert_equal_weights(again, trainer, rtol=0, atol=0)


def test_evaluation_is_the_task_alone():
    trainer = guided()
    x, y = examples()
    compiled(trainer, metrics=["accuracy"])
    plain = compiled(trainer.model, metrics=["accuracy"])
    expected = plain.evaluate(x, y["label"], verbose=0, return_dict=True)
    for labels in (y, y["label"]):
        result = trainer.evaluate(x, labels, verbose=0, return_dict=True)
        assert np.isnan(result.pop("penalty"))
        assert result == pytest.approx(expected)


def test_guidance_moves_the_attribution_into_the_mask():
    x, y = examples(12, annotated=[True])
    y["mask"][:] = 0
    y["mask"][:, :3] = 1
    trainer = guided(weight=1.0)
    compiled(trainer, keras.optimizers.Adam(0.05))
    penalty = trainer.fit(x, y, epochs=30, batch_size=12, verbose=0).history["penalty"]
    assert penalty[0] > -0.7
    assert penalty[-1] < -0.8


def test_errors_name_the_argument():
    model, x, y = cnn(), *examples()
    with pytest.raises(ValueError, match="`explainer` must explain the same model"):
        ExplanationGuided(model, InputXGradient(cnn()), EnergyLoss())
    with pytest.raises(TypeError, match="`explainer` must be an explainer of kzoo.explain"):
        ExplanationGuided(model, "saliency", EnergyLoss())
    with pytest.raises(ValueError, match="names 'kzoo>Nothing', which is not registered"):
        ExplanationGuided(model, {"class_name": "kzoo>Nothing", "config": {}}, EnergyLoss())
    with pytest.raises(ValueError, match="`weight` must be a number of at least 0. Received: -1"):
        guided(weight=-1)
    with pytest.raises(TypeError, match="`penalty` must be a keras.losses.Loss or a function"):
        ExplanationGuided(model, InputXGradient(model), 3)
    with pytest.raises(ValueError, match="`penalty` 'energy_loss' needs masks"):
        guided().fit(x, y["label"], verbose=0)
    with pytest.raises(ValueError, match="`y` may hold"):
        guided().fit(x, {**y, "masks": y["mask"]}, verbose=0)


def test_a_score_of_its_own_cannot_be_saved():
    trainer = guided(score=lambda outputs, target: (outputs[:, 0], target))
    with pytest.raises(ValueError, match="`explainer` has a `score` of its own"):
        trainer.get_config()
