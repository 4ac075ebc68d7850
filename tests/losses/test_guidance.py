import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.losses.guidance import EnergyLoss, L1Loss, PPCELoss, RRRLoss

pytestmark = pytest.mark.paper("Using Explanations to Guide Models")

LOSSES = (EnergyLoss, L1Loss, PPCELoss, RRRLoss)


def by_definition(loss, mask, attributions):
    """The paper's formulas for one map [height, width], in plain Python."""
    positive = np.maximum(attributions, 0)
    if loss is EnergyLoss:
        return -(mask * positive).sum() / positive.sum()
    if loss is RRRLoss:
        scaled = attributions / np.abs(attributions).max()
        return sum(s**2 for s, m in zip(scaled.ravel(), mask.ravel(), strict=True) if m == 0)
    scaled = positive / positive.max()
    if loss is L1Loss:
        return np.mean([abs(m - s) for m, s in zip(mask.ravel(), scaled.ravel(), strict=True)])
    logs = np.log(np.maximum(scaled, 1e-7))
    return -np.mean([log for log, m in zip(logs.ravel(), mask.ravel(), strict=True) if m])


@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_paper_row_by_row(float64, rng, loss):
    mask, maps = rng.integers(0, 2, (4, 5, 6)), rng.normal(size=(4, 5, 6, 3))
    expected = [by_definition(loss, m, a.sum(-1)) for m, a in zip(mask, maps, strict=True)]
    np.testing.assert_allclose(loss(reduction=None)(mask, maps), expected, rtol=1e-10)
    # The same with an axis of one channel on the masks, and with the channels summed beforehand.
    np.testing.assert_allclose(loss(reduction=None)(mask[..., None], maps), expected, rtol=1e-10)
    np.testing.assert_allclose(loss(reduction=None)(mask, maps.sum(-1)), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("loss", "attributions", "expected"),
    [
        (EnergyLoss, [3.0, 1.0, 4.0, -9.0], -0.5),
        (L1Loss, [3.0, 1.0, 4.0, -9.0], (0.25 + 0.75 + 1 + 0) / 4),
        (PPCELoss, [3.0, 1.0, 4.0, -9.0], -np.log(0.75 * 0.25) / 2),
        (RRRLoss, [3.0, 1.0, 4.0, -8.0], 0.25 + 1.0),
    ],
)
def test_by_hand(loss, attributions, expected):
    value = loss()([[1.0, 1.0, 0.0, 0.0]], [attributions])
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_energy_is_minus_one_inside_and_zero_outside():
    mask = np.zeros([1, 4, 4])
    mask[:, :2] = 1
    inside = np.where(mask, 2.0, -5.0)
    np.testing.assert_allclose(EnergyLoss()(mask, inside), -1)
    np.testing.assert_allclose(EnergyLoss()(1 - mask, inside), 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_scale_does_not_matter(rng, loss):
    mask, maps = rng.integers(0, 2, (4, 5, 6)), rng.normal(size=(4, 5, 6)).astype("float32")
    np.testing.assert_allclose(loss()(mask, 1e-12 * maps), loss()(mask, maps), rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_degenerate_maps_and_masks_have_finite_values_and_gradients(loss, value):
    maps = tf.fill([2, 3, 3], value)
    mask = np.stack([np.zeros([3, 3]), np.ones([3, 3])])
    with tf.GradientTape() as tape:
        tape.watch(maps)
        total = loss()(mask, maps)
    assert np.isfinite(total)
    assert np.isfinite(tape.gradient(total, maps)).all()


def test_small_maps_are_resized_to_the_mask():
    mask = np.zeros([1, 6, 6])
    mask[:, :3] = 1
    coarse = np.zeros([1, 2, 2])
    coarse[:, 0] = 1.0
    # Bilinear with half-pixel centers: row i is at (i + 1/2) / 3 - 1/2 of the two coarse ones.
    rows = np.array([1, 1, 2 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(EnergyLoss()(mask, coarse), -rows[:3].sum() / rows.sum(), rtol=1e-5)
    np.testing.assert_allclose(L1Loss()(mask, coarse), (1 / 3 + 1 / 3) / 6, rtol=1e-5)


def test_every_loss_is_serializable_and_compiles():
    for loss in LOSSES:
        made = loss(reduction="sum", name="guide")
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
        assert (type(again), again.name, again.reduction) == (loss, "guide", "sum")


def test_refuses_masks_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`y_true` must be masks \[batch, ...positions\]"):
        EnergyLoss()(np.zeros([2, 4, 4, 3]), np.zeros([2, 4]))
    with pytest.raises(ValueError, match="Only maps of height and width are resized"):
        EnergyLoss()(np.zeros([2, 4]), np.zeros([2, 5]))
