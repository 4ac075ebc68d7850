import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.losses.prototype_patches import (
    orthonormality_loss,
    support_closeness_loss,
    trivial_discrimination_loss,
)
from kzoo.models.protopnet import ProtoPNet, STProtoPNet, branches, feature_extractor
from kzoo.training import Loop
from kzoo.training.protopnet import PrototypeTrainer, fit_in_stages, other_class_l1
from kzoo.training.prototype_push import PushPrototypes, push_prototypes

pytestmark = [
    pytest.mark.paper(
        "Learning Support and Trivial Prototypes for Interpretable Image Classification"
    ),
    pytest.mark.paper("This Looks Like That: Deep Learning for Interpretable Image Recognition"),
]

CLASSES = 3


def loss():
    """In the precision of the test."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(make=STProtoPNet, batch_norm=False, seed=1, **options):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input([6, 6, 2]), keras.layers.Conv2D(4, 3)]
    if batch_norm:
        layers.append(keras.layers.BatchNormalization(momentum=0.5))
    backbone = keras.Sequential([*layers, keras.layers.Activation("gelu")], name="backbone")
    return make(backbone, CLASSES, prototypes_per_class=2, prototype_size=5, **options)


def data(rng, count=12):
    x = rng.normal(size=(count, 6, 6, 2)).astype(keras.config.floatx())
    return x, np.arange(count, dtype="int32") % CLASSES


def one_step(model, x, y, optimizer=None, **options):
    trainer = PrototypeTrainer(model, **options)
    trainer.compile(optimizer or keras.optimizers.SGD(0.1), loss())
    return trainer, trainer.train_on_batch(x, y)


def cross_entropy(logits, y):
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -log_p[np.arange(len(y)), y].mean()


def by_hand(model, x, y, **weights):
    """The loss of the joint stage, prototype by prototype and patch by patch."""
    total = 0.0
    features = keras.tree.flatten(feature_extractor(model)(x))
    for branch, z in zip(branches(model), features, strict=True):
        z = np.asarray(z).reshape(len(x), -1, z.shape[-1])
        p = np.asarray(branch.prototypes.prototypes)[0, 0].T
        near, similarity = np.empty([2, len(x), len(p)])
        for i in range(len(x)):
            for j in range(len(p)):
                if branch.name:
                    lengths = np.linalg.norm(z[i], axis=1) * np.linalg.norm(p[j])
                    near[i, j] = (z[i] @ p[j] / lengths).max()
                    similarity[i, j] = max(near[i, j], 0)
                else:
                    d = ((z[i] - p[j]) ** 2).sum(1).min()
                    near[i, j], similarity[i, j] = -d, np.log((d + 1) / (d + 1e-4))
        own = y[:, None] == np.arange(len(p)) // 2
        total += cross_entropy(similarity @ branch.classifier.kernel.numpy(), y)
        separation = "support_separation" if branch.name == "support" else "separation"
        total -= weights["cluster"] * np.where(own, near, -np.inf).max(1).mean()
        total += weights[separation] * np.where(own, -np.inf, near).max(1).mean()
        if branch.name:
            grouped = p.reshape(CLASSES, 2, -1)
            total += weights["orthonormality"] * float(orthonormality_loss(grouped))
        if branch.name == "support":
            total += weights["closeness"] * float(support_closeness_loss(grouped))
        if branch.name == "trivial":
            total += weights["discrimination"] * float(trivial_discrimination_loss(grouped))
    return total / len(features)


@pytest.mark.parametrize("make", [ProtoPNet, STProtoPNet])
def test_loss_of_the_joint_stage(float64, rng, make):
    weights = {
        "cluster": 0.7, "separation": 0.2, "support_separation": 0.4, "orthonormality": 0.03,
        "closeness": 0.5, "discrimination": 0.9,
    }  # fmt: skip
    x, y = data(rng)
    model = network(make)
    expected = by_hand(model, x, y, **weights)
    _, value = one_step(model, x, y, **weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("stage", "moved"),
    [("warm", {"add_on", "prototypes"}), ("joint", {"backbone", "add_on", "prototypes"}),
     ("last_layer", {"classifier"})],
)  # fmt: skip
def test_a_stage_moves_its_own_layers(rng, stage, moved):
    model = network(ProtoPNet)
    before = {v.path: v.numpy() for v in model.variables}
    one_step(model, *data(rng), stage=stage)
    changed = {v.path.split("/")[0] for v in model.variables if np.any(v != before[v.path])}
    names = {model.get_layer(name).variables[0].path.split("/")[0] for name in moved}
    assert changed == names


def test_last_stage_keeps_moving_statistics_and_is_convex(float64, rng):
    """Along the line between two kernels the loss stays below its chord."""
    model = network(ProtoPNet, batch_norm=True)
    x, y = data(rng)
    moving = model.get_layer("backbone").layers[1].moving_mean
    before = moving.numpy()
    (branch,) = branches(model)
    kernels = rng.normal(size=(2, *branch.classifier.kernel.shape))
    losses = []
    for share in (0.0, 0.5, 1.0):
        branch.classifier.kernel.assign((1 - share) * kernels[0] + share * kernels[1])
        _, value = one_step(model, x, y, keras.optimizers.SGD(0.0), stage="last_layer", l1=0.1)
        losses.append(value)
    assert losses[1] < (losses[0] + losses[2]) / 2
    np.testing.assert_array_equal(moving.numpy(), before)


def test_l1_leaves_the_weights_of_the_own_class_alone(float64):
    (branch,) = branches(network(ProtoPNet))
    # 6 prototypes x 3 classes, of which 12 weights of -0.5 lead to another class.
    np.testing.assert_allclose(other_class_l1(branch), 6.0)


def test_support_prototypes_of_unit_length_after_a_step(rng):
    model = network()
    one_step(model, *data(rng))
    for branch in branches(model):
        lengths = np.linalg.norm(branch.prototypes.prototypes.numpy()[0, 0], axis=0)
        np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)


def test_closeness_gathers_support_and_discrimination_scatters_trivial_prototypes(rng):
    x, y = data(rng)
    model = network()
    zero = {"cluster": 0.0, "separation": 0.0, "support_separation": 0.0, "orthonormality": 0.0}
    trainer = PrototypeTrainer(model, **zero)
    trainer.compile(keras.optimizers.SGD(0.3), loss())

    def least_and_greatest():
        trivial, support = (branch.prototypes.class_prototypes() for branch in branches(model))
        return -float(support_closeness_loss(support)), float(trivial_discrimination_loss(trivial))

    before = least_and_greatest()
    trainer.fit(x, y, batch_size=12, epochs=15, verbose=0)
    after = least_and_greatest()
    assert after[0] > before[0] + 0.1
    assert after[1] < before[1] - 0.1


@pytest.mark.parametrize("make", [ProtoPNet, STProtoPNet])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_pushed_prototype_is_the_nearest_patch_of_its_class(rng, make, patch_size):
    model = network(make, patch_size=patch_size)
    x, y = data(rng)
    old = {b.name: b.prototypes.prototypes.numpy() for b in branches(model)}
    projections = push_prototypes(model, (x, y), batch_size=5)
    features = keras.tree.flatten(feature_extractor(model)(x))
    for branch, maps in zip(branches(model), features, strict=True):
        maps, found = np.asarray(maps), projections[branch.name]
        np.testing.assert_array_equal(y[found.images], branch.prototypes.prototype_classes)
        for j, label in enumerate(branch.prototypes.prototype_classes):
            row, column = found.rows[j], found.columns[j]
            own = maps[found.images[j], row : row + patch_size, column : column + patch_size]
            own = own / np.linalg.norm(own) if branch.name else own
            new = branch.prototypes.prototypes.numpy()[..., j]
            np.testing.assert_allclose(new, own, atol=1e-5)
            p = old[branch.name][..., j]
            patches = [
                m[r : r + patch_size, c : c + patch_size]
                for m in maps[y == label]
                for r in range(m.shape[0] - patch_size + 1)
                for c in range(m.shape[1] - patch_size + 1)
            ]
            if branch.name:
                best = max((z * p).sum() / np.linalg.norm(z) for z in patches)
            else:
                best = max(-((z - p) ** 2).sum() for z in patches)
            np.testing.assert_allclose(found.proximity[j], best, atol=1e-4)


def test_push_from_a_dataset_is_that_from_arrays(rng):
    x, y = data(rng)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
    ours, theirs = push_prototypes(network(), (x, y)), push_prototypes(network(), dataset)
    for name in ("trivial", "support"):
        np.testing.assert_array_equal(ours[name].images, theirs[name].images)


def test_push_refuses_a_class_without_images_and_changes_nothing(rng):
    x, y = data(rng)
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"none of the classes \[2\]"):
        push_prototypes(model, (x[y < 2], y[y < 2]))
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_callback_pushes_when_it_is_due(rng):
    x, y = data(rng)
    model = network(ProtoPNet)
    trainer = PrototypeTrainer(model)
    trainer.compile("sgd", loss())
    callback = PushPrototypes((x, y), first=1, every=2)
    trainer.fit(x, y, epochs=1, verbose=0, callbacks=[callback])
    assert callback.projections is None
    trainer.fit(x, y, epochs=2, verbose=0, callbacks=[callback])
    again = push_prototypes(model, (x, y))[""]
    # A projected prototype is its own nearest patch.
    np.testing.assert_array_equal(callback.projections[""].images, again.images)
    np.testing.assert_allclose(again.proximity, 0.0, atol=1e-5)


def test_all_stages_one_after_another(rng):
    x, y = data(rng)
    model = network(ProtoPNet)
    histories, projections = fit_in_stages(
        model, x, y, warm_epochs=1, joint_epochs=1, last_layer_epochs=1, cycles=2
    )
    assert [stage for stage, _ in histories] == [
        "warm", "joint", "last_layer", "joint", "last_layer",
    ]  # fmt: skip
    assert set(projections) == {""}
    again = push_prototypes(model, (x, y))
    for name, projection in projections.items():
        np.testing.assert_array_equal(again[name].images, projection.images)


def test_two_replicas_do_as_one(float64, mirrored, rng):
    x, y = data(rng)
    dataset = tf.data.Dataset.from_tensors((x, y)).repeat(3)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(3))

    def trained(strategy):
        with strategy.scope():
            model = network()
            trainer = PrototypeTrainer(model)
            trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss())
        Loop(trainer, dataset, strategy=strategy).run()
        return model.get_weights()

    ours = trained(mirrored)
    for a, b in zip(ours, trained(tf.distribute.get_strategy()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_sample_weights_count_in_every_term(float64, rng):
    x, y = data(rng)
    losses = []
    for rows, weight in ((slice(None), np.repeat([2.0, 0.0], 6)), (slice(6), None)):
        trainer = PrototypeTrainer(network())
        trainer.compile(keras.optimizers.SGD(0.0), loss())
        losses.append(trainer.train_on_batch(x[rows], y[rows], sample_weight=weight))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)


def test_keras_file_resumes_with_the_same_next_step(rng, tmp_path):
    x, y = data(rng)
    trainer, _ = one_step(network(), x, y, keras.optimizers.Adam(0.01), stage="warm", cluster=0.3)
    trainer.save(tmp_path / "trainer.keras")
    again = keras.saving.load_model(tmp_path / "trainer.keras")
    assert (again.stage, again.cluster) == ("warm", 0.3)
    for each in (trainer, again):
        each.train_on_batch(x, y)
    for a, b in zip(trainer.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_refuses_what_it_cannot_train():
    with pytest.raises(ValueError, match="`model` must come from kzoo.models.ProtoPNet"):
        PrototypeTrainer(keras.Sequential([keras.Input([2]), keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="`stage` must be one of warm, joint, last_layer"):
        PrototypeTrainer(network(), stage="push")
    with pytest.raises(ValueError, match="`l1` must be a number of at least 0. Received: -1"):
        PrototypeTrainer(network(), l1=-1)
    with pytest.raises(ValueError, match="`every` must be an integer of at least 1"):
        PushPrototypes(None, every=0)
    with pytest.raises(ValueError, match="`cycles` must be an integer of at least 1"):
        fit_in_stages(network(), None, None, cycles=0)
