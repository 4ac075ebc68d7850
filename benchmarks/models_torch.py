"""The PyTorch side of `benchmarks.models`, in a process that may run another Python.

Reads requests as `benchmarks.explain_peers` does: `network`, "torchvision:densenet121" or
"timm:cspresnet50"; `kind`, "prediction" or "training step"; `batch`; `size`.
"""

import functools
import json

import torch

from benchmarks.explain_peers import THREADS, noise_images, serve
from benchmarks.peak import resident


@functools.lru_cache(maxsize=1)
def _network(name):
    library, name = name.split(":")
    if library == "timm":
        import timm

        model = timm.create_model(name)
    else:
        import torchvision

        model = getattr(torchvision.models, name)()
    return model.to(memory_format=torch.channels_last)


def make(request):
    request = json.loads(request)
    torch.set_num_threads(THREADS)
    model = _network(request["network"])
    batch, size = request["batch"], request["size"]
    images = torch.from_numpy(noise_images(batch, size).transpose(0, 3, 1, 2))
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64)
    if request["kind"] == "prediction":
        return lambda: _predict(model, images)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    return lambda: _train(model, images, labels, optimizer)


def _predict(model, images):
    model.eval()
    with torch.inference_mode():
        return model(images).numpy()


def _train(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return float(loss)


if __name__ == "__main__":
    serve(make, resident)
