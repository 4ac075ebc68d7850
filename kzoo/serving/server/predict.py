"""Predict: a PredictRequest run on a loaded model."""

from collections.abc import Mapping

from kzoo.serving.server.tensors import to_numpy


def predict(model, request):
    """Runs a PredictRequest.

    Args:
        model: `LoadedModel`.
        request: PredictRequest; of its model_spec only the signature's name is read.

    Returns:
        {output name: array}.

    Raises:
        ServingError: with TensorFlow Serving's text.
    """
    signature_name = request.model_spec.signature_name
    return model.predict(signature_name, _Tensors(request.inputs), tuple(request.output_filter))


class _Tensors(Mapping):
    """{input name: array}, decoded when asked for: names are judged before values."""

    def __init__(self, protos):
        self._protos = protos
        self._arrays = {}

    def __getitem__(self, name):
        if name not in self._arrays:
            if name not in self._protos:
                raise KeyError(name)
            self._arrays[name] = to_numpy(self._protos[name], name)
        return self._arrays[name]

    def __contains__(self, name):
        return name in self._protos

    def __iter__(self):
        return iter(self._protos)

    def __len__(self):
        return len(self._protos)
