"""Which models to serve, and which of their versions: ModelServerConfig and the file system."""

import os
import re

import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from kzoo.serving.server.errors import invalid_argument, unimplemented

_PLATFORM = "tensorflow"
_MAX_VERSION = 2**63 - 1


def read(options):
    """Returns the ModelServerConfig that `ServerOptions` ask for.

    Raises:
        ServingError: the file cannot be read or parsed.
    """
    if options.model_config_file is not None:
        return read_config_file(options.model_config_file)
    return single_model(options.model_name, options.base_path)


def single_model(name, base_path):
    """Returns the ModelServerConfig of one model, which serves its latest version."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(
        name=name, base_path=os.fspath(base_path), model_platform=_PLATFORM
    )
    return config


def read_config_file(path):
    """Reads a ModelServerConfig in protobuf's text format.

    Raises:
        ServingError: the file cannot be read or parsed.
    """
    try:
        with tf.io.gfile.GFile(os.fspath(path)) as file:
            text = file.read()
    except tf.errors.OpError as error:
        raise invalid_argument(f"Could not read `model_config_file` {path}: {error}") from error
    try:
        return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise invalid_argument(
            f"Error parsing text-format tensorflow.serving.ModelServerConfig: {error}"
        ) from error


def validated_models(config):
    """Returns {name: ModelConfig} of a ModelServerConfig.

    Raises:
        ServingError: a name twice, a relative base path, another platform than TensorFlow, or no
            model list.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise unimplemented("The model config must be a non-empty model_config_list.")
    models = {}
    for model in config.model_config_list.config:
        if model.name in models:
            raise invalid_argument(
                f"Illegal to list model {model.name} multiple times in config list"
            )
        if not os.path.isabs(model.base_path) and "://" not in model.base_path:
            raise invalid_argument(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()="
                f"{model.base_path}"
            )
        _check_platform(model)
        models[model.name] = model
    return models


def _check_platform(model):
    legacy = model.model_type != model_server_config_pb2.MODEL_TYPE_UNSPECIFIED
    if legacy and model.model_platform:
        raise invalid_argument(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    if not legacy and not model.model_platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    if legacy and model.model_type != model_server_config_pb2.TENSORFLOW:
        raise invalid_argument(
            f"ModelServerConfig::model_type choice {model.model_type} not supported."
        )
    if not legacy and model.model_platform != _PLATFORM:
        raise invalid_argument(
            f"Model {model.name} requests unsupported platform {model.model_platform}"
        )


def aspired_versions(model):
    """Returns {version: directory} of the versions that the model's policy wants.

    A version is a sub-directory whose name is an integer, leading zeros allowed.

    Raises:
        ServingError: the base path does not exist.
    """
    if not tf.io.gfile.isdir(model.base_path):
        raise invalid_argument(
            f"Could not find base path {model.base_path} for servable {model.name}"
        )
    found = {}
    for child in sorted(tf.io.gfile.listdir(model.base_path)):
        name, path = child.rstrip("/"), os.path.join(model.base_path, child.rstrip("/"))
        if re.fullmatch(r"[0-9]+", name) and int(name) <= _MAX_VERSION and tf.io.gfile.isdir(path):
            found[int(name)] = path
    return {version: found[version] for version in _wanted(model.model_version_policy, found)}


def _wanted(policy, found):
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return sorted(found)
    if kind == "specific":
        return [version for version in policy.specific.versions if version in found]
    return sorted(found)[-max(policy.latest.num_versions, 1) :]
