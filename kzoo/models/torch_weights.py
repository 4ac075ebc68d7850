"""Weights of published PyTorch checkpoints, read without PyTorch and without running their code.

A .pth file is a pickle, and unpickling can run any program. Here it is read by an unpickler that
knows tensors, storages and dictionaries, and refuses everything else. Both of PyTorch's formats
are read, the zip file and the one before version 1.6, in which torchvision's older files are.
"""

import collections
import math
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np

TORCH_SUFFIXES = (".pth", ".pt", ".safetensors")

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# The name of a Keras weight, and what PyTorch calls it.
_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_HEADS = ("classifier.", "fc.", "head.", "last_linear.", "classif.")


def is_torch_file(path):
    """Whether the name of the file says that it is a checkpoint of PyTorch."""
    return str(path).endswith(TORCH_SUFFIXES)


def load_torch_weights(model, checkpoint, names):
    """Sets all weights of a model from a checkpoint of PyTorch.

    Kernels are transposed from PyTorch's order. Every weight must get a value of its shape, and
    every tensor of the checkpoint must be used, but for counters of batches and, in a model
    without a classifier, the classifier. Nothing is set if that is not so.

    Args:
        model: a built `keras.Model`.
        checkpoint: the path of a .pth, .pt or .safetensors file (the last needs the package
            safetensors), or a dictionary {name: array}.
        names: function from the path of a layer with weights ("conv1_conv", or "block/conv" of
            one in another layer) to the name of the module in the checkpoint ("features.conv0"),
            or to a tuple of names of which one is there. A weight that is no part of a module is
            looked up under that name itself.

    Raises:
        ValueError: naming the tensors that are missing, left over or of another shape.
    """
    state = checkpoint if isinstance(checkpoint, dict) else read_state_dict(checkpoint)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    unused = {key for key in state if not key.endswith("num_batches_tracked")}
    values, missing = [], []
    weights = [weight for weight in model.weights if "float" in weight.dtype]
    for weight in weights:
        key = _find_key(weight.path, names, state)
        if key is None:
            missing.append(weight.path)
            continue
        unused.discard(key)
        values.append(_convert(state[key], tuple(weight.shape), weight.path, key))
    if "predictions" not in [layer.name for layer in model.layers]:
        unused = {key for key in unused if not key.startswith(_HEADS)}
    if missing or unused:
        raise ValueError(
            f"The checkpoint does not fit {model.name!r}: no tensors for {_some(missing)}; no "
            f"weights for {_some(sorted(unused))}."
        )
    for weight, value in zip(weights, values, strict=True):
        weight.assign(value)


def read_state_dict(path):
    """Returns {name: array} of a .pth, .pt or .safetensors file.

    A checkpoint of a training run, with the state dictionary under "state_dict" or "model" next to
    other numbers and strings, is opened.

    Raises:
        ValueError: for a file that is no checkpoint, is cut off, or holds anything but tensors,
            dictionaries, lists, numbers and strings.
    """
    path = pathlib.Path(path)
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    try:
        with path.open("rb") as file:
            loaded = _load_zip(file) if zipfile.is_zipfile(file) else _load_legacy(file)
    except (pickle.UnpicklingError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path.name} is no PyTorch checkpoint that can be read: {error}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    arrays = loaded.values() if isinstance(loaded, dict) else [None]
    if not all(isinstance(array, np.ndarray) for array in arrays):
        raise ValueError(f"{path.name} must hold a state dictionary of tensors.")
    return dict(loaded)


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors and plain containers; the storages are to be filled afterwards."""

    def __init__(self, file, limit):
        super().__init__(file)
        self.storages = {}
        self._limit = limit

    def find_class(self, module, name):
        if module == "torch" and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no tensor")

    def persistent_load(self, pid):
        _, dtype, key, _, size, *_ = pid
        if key not in self.storages:
            if not isinstance(size, int) or not 0 <= size * dtype.itemsize <= self._limit:
                raise pickle.UnpicklingError(f"storage {key} is larger than the file")
            self.storages[key] = np.zeros(size, dtype)
        return self.storages[key]


def _rebuild_tensor(storage, offset, size, stride, *_):
    """A view of a storage."""
    size, stride = tuple(size), tuple(stride)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # What lies outside of the storage is memory of the program.
    if min((offset, *size, *stride)) < 0 or (math.prod(size) and last >= len(storage)):
        raise pickle.UnpicklingError(f"a tensor of shape {size} reaches out of its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps)


def _load_zip(file):
    with zipfile.ZipFile(file) as archive:
        (main,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = main.removesuffix("data.pkl")
        with archive.open(main) as pickled:
            unpickler = _Unpickler(pickled, limit=_size(file))
            loaded = unpickler.load()
        for key, storage in unpickler.storages.items():
            _fill(storage, archive.read(f"{folder}data/{key}"), key)
    return loaded


def _load_legacy(file):
    file.seek(0)
    limit = _size(file)
    # The magic number, the version of the format, and the byte order, each a pickle of its own.
    magic, _, _ = (_Unpickler(file, limit).load() for _ in range(3))
    if magic != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("the magic number is not PyTorch's")
    unpickler = _Unpickler(file, limit)
    loaded = unpickler.load()
    for key in _Unpickler(file, limit).load():
        file.read(8)  # the number of elements, which is known
        storage = unpickler.storages[key]
        _fill(storage, file.read(storage.nbytes), key)
    return loaded


def _fill(storage, data, key):
    if len(data) != storage.nbytes:
        raise pickle.UnpicklingError(f"storage {key} is cut off")
    storage[:] = np.frombuffer(data, storage.dtype)


def _size(file):
    return pathlib.Path(file.name).stat().st_size


def _find_key(path, names, state):
    layer, _, weight = path.rpartition("/")
    modules = names(layer)
    for module in (modules,) if isinstance(modules, str) else modules:
        for key in (f"{module}.{_WEIGHTS.get(weight, weight)}", module):
            if key in state:
                return key
    return None


def _convert(value, shape, path, key):
    """A tensor in the order of Keras: kernels have their outputs last."""
    moved = np.asarray(value)
    if moved.ndim > 1 and path.endswith("/kernel"):
        moved = np.moveaxis(moved, (0, 1), (-1, -2))
        if moved.shape[-2] == 1 and moved.shape[:-2] == shape[:-2]:
            # A depthwise kernel, [..., 1, channels * multiplier] in PyTorch.
            moved = moved.reshape(moved.shape[:-2] + _depthwise(moved.shape[-1], shape))
    if moved.shape != shape and [n for n in moved.shape if n > 1] == [n for n in shape if n > 1]:
        moved = moved.reshape(shape)
    if moved.shape != shape:
        raise ValueError(
            f"The tensor {key!r} of the checkpoint has the shape {np.shape(value)}, which does not "
            f"fit {path!r} of shape {shape}. For another number of `classes`, load the weights "
            "with include_top=False."
        )
    return moved


def _depthwise(channels, shape):
    return shape[-2:] if math.prod(shape[-2:]) == channels else (1, channels)


def _some(names):
    listed = ", ".join(names[:3]) or "nothing"
    return listed + (f" and {len(names) - 3} more" if len(names) > 3 else "")
