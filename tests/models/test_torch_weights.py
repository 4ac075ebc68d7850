import collections
import contextlib
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import keras
import numpy as np
import pytest

from kzoo.models import DenseNetBC, feature_pyramid
from kzoo.models.torch_weights import load_torch_weights, read_state_dict


class FloatStorage:
    """Stands for `torch.FloatStorage` in files that are written without PyTorch."""


FloatStorage.__module__ = "torch"


class Tensor:
    """A tensor that is pickled as PyTorch does."""

    def __init__(self, array, transposed=False):
        self.array = np.ascontiguousarray(array, "<f4")
        self.size = self.array.shape[::-1] if transposed else self.array.shape
        strides = tuple(step // 4 for step in self.array.strides)
        self.strides = strides[::-1] if transposed else strides

    def __reduce__(self):
        storage = Storage(self.array)
        hooks = collections.OrderedDict()
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (storage, 0, self.size, self.strides, False, hooks)


class Storage:
    def __init__(self, array):
        self.array = array


class Pickler(pickle.Pickler):
    def __init__(self, file, legacy=False):
        super().__init__(file, protocol=2)
        self.arrays = []
        self.legacy = legacy

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        self.arrays.append(value.array)
        view = (None,) if self.legacy else ()
        key = str(len(self.arrays) - 1)
        return ("storage", FloatStorage, key, "cpu", value.array.size, *view)


@contextlib.contextmanager
def fake_torch():
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2():
        raise AssertionError

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    torch.FloatStorage, torch._utils = FloatStorage, utils
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        yield


def write_zip(path, content):
    with fake_torch():
        pickled = io.BytesIO()
        pickler = Pickler(pickled)
        pickler.dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        for key, array in enumerate(pickler.arrays):
            archive.writestr(f"archive/data/{key}", array.tobytes())


def write_legacy(path, content):
    with fake_torch(), open(path, "wb") as file:
        for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(each, file, protocol=2)
        pickler = Pickler(file, legacy=True)
        pickler.dump(content)
        pickle.dump([str(key) for key in range(len(pickler.arrays))], file, protocol=2)
        for array in pickler.arrays:
            file.write(struct.pack("<q", array.size) + array.tobytes())


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_reads_both_formats(write, tmp_path, rng):
    a, b = rng.normal(size=(2, 3)), rng.normal(size=(4, 2))
    content = collections.OrderedDict(a=Tensor(a), b=Tensor(b, transposed=True))
    write(tmp_path / "net.pth", {"state_dict": content, "epoch": 3})
    state = read_state_dict(tmp_path / "net.pth")
    assert list(state) == ["a", "b"]
    np.testing.assert_array_equal(state["a"], a.astype("float32"))
    np.testing.assert_array_equal(state["b"], b.astype("float32").T)


def test_reads_safetensors(tmp_path, rng):
    numpy = pytest.importorskip("safetensors.numpy")
    a = rng.normal(size=(2, 3)).astype("float32")
    numpy.save_file({"a": a}, tmp_path / "net.safetensors")
    np.testing.assert_array_equal(read_state_dict(tmp_path / "net.safetensors")["a"], a)


class Attack:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_runs_no_code(write, tmp_path):
    write(tmp_path / "net.pth", {"a": Attack()})
    with pytest.raises(ValueError, match="system, which is no tensor"):
        read_state_dict(tmp_path / "net.pth")


def test_tensors_stay_in_their_storage(tmp_path, rng):
    tensor = Tensor(rng.normal(size=(2, 3)))
    tensor.size = (2, 4)
    write_zip(tmp_path / "net.pth", {"a": tensor})
    with pytest.raises(ValueError, match="reaches out of its storage"):
        read_state_dict(tmp_path / "net.pth")


def test_a_file_cut_off_is_refused(tmp_path, rng):
    write_legacy(tmp_path / "net.pth", {"a": Tensor(rng.normal(size=(20, 30)))})
    data = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "net.pth").write_bytes(data[:-7])
    with pytest.raises(ValueError, match=r"net.pth is no PyTorch checkpoint .* is cut off"):
        read_state_dict(tmp_path / "net.pth")


def small_model():
    inputs = keras.Input((6, 6, 4))
    x = keras.layers.Conv2D(6, 3, groups=2, name="grouped")(inputs)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = keras.layers.BatchNormalization(name="norm", epsilon=1e-5)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="predictions")(x))


def small_state(rng):
    shapes = {
        "grouped.weight": (6, 2, 3, 3),
        "grouped.bias": (6,),
        "depthwise.weight": (12, 1, 3, 3),
        "depthwise.bias": (12,),
        "norm.weight": (12,),
        "norm.bias": (12,),
        "norm.running_mean": (12,),
        "norm.running_var": (12,),
        "norm.num_batches_tracked": (),
        "predictions.weight": (3, 12),
        "predictions.bias": (3,),
    }
    return {key: rng.uniform(0.5, 1.5, shape).astype("float32") for key, shape in shapes.items()}


def correlate(x, kernel, groups):
    """PyTorch's conv2d of [channels, height, width], without padding, as loops."""
    out, per_group, size, _ = kernel.shape
    y = np.zeros((out, x.shape[1] - size + 1, x.shape[2] - size + 1))
    for o in range(out):
        first = o // (out // groups) * per_group
        for i, j in np.ndindex(y.shape[1:]):
            patch = x[first : first + per_group, i : i + size, j : j + size]
            y[o, i, j] = np.sum(patch * kernel[o])
    return y


def test_outputs_are_those_of_pytorchs_layers(rng):
    model, state = small_model(), small_state(rng)
    load_torch_weights(model, state, lambda path: path)
    image = rng.normal(size=(6, 6, 4)).astype("float32")
    y = correlate(image.transpose(2, 0, 1), state["grouped.weight"], groups=2)
    y += state["grouped.bias"][:, None, None]
    y = correlate(y, state["depthwise.weight"], groups=6) + state["depthwise.bias"][:, None, None]
    scale = state["norm.weight"] / np.sqrt(state["norm.running_var"] + 1e-5)
    y = (y - state["norm.running_mean"][:, None, None]) * scale[:, None, None]
    y = (y + state["norm.bias"][:, None, None]).mean(axis=(1, 2))
    expected = state["predictions.weight"] @ y + state["predictions.bias"]
    np.testing.assert_allclose(model(image[None])[0], expected, rtol=1e-4)


def test_what_does_not_fit_is_named_and_nothing_set(rng):
    model, state = small_model(), small_state(rng)
    before = [w.copy() for w in model.get_weights()]
    broken = {key: value for key, value in state.items() if key != "norm.weight"}
    broken["extra.weight"] = np.ones(1)
    with pytest.raises(ValueError, match="no tensors for norm/gamma; no weights for extra.weight"):
        load_torch_weights(model, broken, lambda path: path)
    wide = {**state, "predictions.weight": np.ones((5, 12), "float32")}
    with pytest.raises(ValueError, match=r"'predictions.weight' .* \(5, 12\).*include_top=False"):
        load_torch_weights(model, wide, lambda path: path)
    for new, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(new, old)


def test_feature_pyramid_after_loading(tmp_path):
    model = DenseNetBC(10, 4, input_shape=(16, 16, 3), include_top=False)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    images = np.ones((2, 16, 16, 3), "float32")
    maps = feature_pyramid(again)(images)
    assert {name: x.shape[1] for name, x in maps.items()} == {"P0": 16, "P1": 8, "P2": 4}
    np.testing.assert_array_equal(maps["P2"], model(images))


def test_feature_pyramid_of_another_model():
    with pytest.raises(ValueError, match="marks its stages"):
        feature_pyramid(small_model())
