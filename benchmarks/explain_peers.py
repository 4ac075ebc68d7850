"""The other libraries of `benchmarks.explain`, in a process that may run another Python.

    PYTHON -m benchmarks.explain_peers torch|tensorflow FOLDER

Reads contenders from the standard input, one JSON object in each line, calls each once and answers
with {"seconds": ..., "mebibytes": ...}. An object has `library`; `method`; `network`, its name;
`parameters`, how many numbers the network has, for a check; `size` of the images; `batch`; `steps`;
`window` of the occlusion; `layer` of Grad-CAM; `rows`, the size of internal batches; and
`with_peak`, whether the memory is asked for. FOLDER holds the Keras networks. Nothing here knows
kzoo. The settings are the fastest that were found for each library.
"""

import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.peak import allocated, resident, timed

TARGET = 3
THREADS = 2
# Of the range of the input, as in kzoo.
_NOISE = 0.15
# Threads that wait must not keep the cores from the contender whose turn it is.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": str(THREADS),
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONWARNINGS": "ignore",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def noise_images(batch, size):
    return np.random.default_rng(0).standard_normal((batch, size, size, 3), "float32")


class Worker:
    """A module such as this one in a process of its own.

    Args:
        python: path of the interpreter.
        module: its name.
        arguments: of its command line.
    """

    def __init__(self, python, module, *arguments):
        self.process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, **_ENVIRONMENT},
        )

    def timed(self, request, with_peak=False):
        """As `benchmarks.peak.timed`, of what the worker makes of a request."""
        print(json.dumps({**request, "with_peak": with_peak}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The worker failed, see above, at {request}")
        answer = json.loads(answer)
        return answer["seconds"], answer["mebibytes"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main(framework, folder):
    # All workers at once, while the first request is on its way.
    importlib.import_module(framework)
    torch = framework == "torch"
    make = _captum if torch else functools.partial(_keras, folder)
    serve(make, resident if torch else allocated)


def serve(make, meter):
    """Answers the requests of a `Worker` until its input ends.

    Args:
        make: function from a request, as a line of JSON, to the function to time.
        meter: `resident` or `allocated`.
    """
    # Only answers go to the standard output, whatever a library prints.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    make = functools.lru_cache(maxsize=2)(make)
    for line in sys.stdin:
        request = json.loads(line)
        with_peak = request.pop("with_peak")
        # As a line again, which is hashable.
        contender = make(json.dumps(request))
        seconds, mebibytes = timed(contender, meter if with_peak else None)
        print(json.dumps({"seconds": seconds, "mebibytes": mebibytes}), file=answers, flush=True)


# ------------------------------------------------------------------------------------- TensorFlow


def _keras(folder, request):
    request = json.loads(request)
    model = _keras_model(f"{folder}/{request['network']}.keras")
    images = noise_images(request["batch"], request["size"])
    make = {"xplique": _xplique, "tf-keras-vis": _tf_keras_vis}[request["library"]]
    return make(model, images, request)


@functools.cache
def _keras_model(path):
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    return keras.saving.load_model(path, compile=False)


def _xplique(model, images, request):
    from xplique import attributions

    steps, window, rows = request["steps"], request["window"], request["rows"]
    noise = _NOISE * float(np.ptp(images))
    name, arguments = {
        "Saliency": ("Saliency", {}),
        "SmoothGrad": ("SmoothGrad", {"nb_samples": steps, "noise": noise}),
        "IntegratedGradients": ("IntegratedGradients", {"steps": steps}),
        "GradCAM": ("GradCAM", {"conv_layer": request["layer"]}),
        "RISE": ("Rise", {"nb_samples": steps}),
        "Occlusion": ("Occlusion", {"patch_size": window, "patch_stride": window // 2}),
    }[request["method"]]
    explainer = getattr(attributions, name)(model, batch_size=rows, **arguments)
    targets = np.eye(model.output_shape[-1], dtype="float32")[[TARGET] * len(images)]
    return lambda: explainer(images, targets)


def _tf_keras_vis(model, images, request):
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.saliency import Saliency
    from tf_keras_vis.utils.scores import CategoricalScore

    score = CategoricalScore([TARGET] * len(images))
    if request["method"] == "GradCAM":
        cam = Gradcam(model)
        return lambda: cam(score, images, penultimate_layer=request["layer"])
    saliency = Saliency(model)
    samples = {"Saliency": 0, "SmoothGrad": request["steps"]}[request["method"]]
    return lambda: saliency(score, images, smooth_samples=samples, smooth_noise=_NOISE)


# ------------------------------------------------------------------------------------------ torch


def _captum(request):
    import torch
    from captum import attr

    request = json.loads(request)
    model = _torch_model(request["network"], request["parameters"])
    images = torch.from_numpy(noise_images(request["batch"], request["size"]).transpose(0, 3, 1, 2))
    images = images.contiguous(memory_format=torch.channels_last)
    steps, window = request["steps"], request["window"]
    # Captum counts some batches in rows and some in copies of the whole input.
    rows, copies = request["rows"], max(1, request["rows"] // len(images))

    def grad_cam():
        cam = attr.LayerGradCam(model, model.features)
        cam = cam.attribute(images, TARGET, relu_attributions=True)
        return attr.LayerAttribution.interpolate(cam, images.shape[2:], "bilinear")

    functions = {
        "Saliency": lambda: attr.Saliency(model).attribute(images, TARGET),
        "SmoothGrad": lambda: attr.NoiseTunnel(attr.Saliency(model)).attribute(
            images,
            nt_samples=steps,
            nt_samples_batch_size=min(copies, steps),
            stdevs=_NOISE * float(images.max() - images.min()),
            target=TARGET,
            abs=False,
        ),
        "IntegratedGradients": lambda: attr.IntegratedGradients(model).attribute(
            images, target=TARGET, n_steps=steps, internal_batch_size=rows
        ),
        "GradCAM": grad_cam,
        "Occlusion": lambda: attr.Occlusion(model).attribute(
            images,
            sliding_window_shapes=(3, window, window),
            strides=(3, window // 2, window // 2),
            target=TARGET,
            perturbations_per_eval=copies,
        ),
    }
    return functions[request["method"]]


@functools.cache
def _torch_model(name, parameters):
    """The network of this name, ready to be explained; it must have that many numbers."""
    import torch

    from benchmarks.explain_torch import NETWORKS

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = NETWORKS[name]().eval().requires_grad_(False)
    held = [x for key, x in model.state_dict().items() if not key.endswith("num_batches_tracked")]
    if sum(x.numel() for x in held) != parameters:
        raise AssertionError(
            f"{name} must be the same network in both frameworks, with {parameters} numbers. "
            f"Received: {sum(x.numel() for x in held)}"
        )
    return model.to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main(*sys.argv[1:])
