"""Which models to serve, and which of their versions: ModelServerConfig and the file system."""

import logging
import os
import re

import tensorflow as tf
from tensorflow_serving.config import model_server_config_pb2

from kzoo.serving.server import text_proto
from kzoo.serving.server.errors import (
    Code,
    ServingError,
    invalid_argument,
    not_found,
    unimplemented,
)

log = logging.getLogger(__name__)

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
    return text_proto.read(path, model_server_config_pb2.ModelServerConfig())


def models(config):
    """Returns {name: ModelConfig} of a ModelServerConfig."""
    return {model.name: model for model in config.model_config_list.config}


def validated_models(config):
    """Returns {name: ModelConfig} of a configuration that a server may start with.

    Raises:
        ServingError: a name twice, a relative base path, another platform than TensorFlow.
    """
    check_transition(model_server_config_pb2.ModelServerConfig(), config)
    check_platforms(config)
    return models(config)


def check_transition(old, new):
    """Raises a `ServingError` unless the configuration `new` may follow `old`.

    An empty configuration may stay or become any; a list of models may become another list.
    """
    if new.WhichOneof("config") == "custom_model_config":
        raise unimplemented("ModelServer does not yet support custom model config.")
    if old.WhichOneof("config") and not new.WhichOneof("config"):
        raise ServingError(
            Code.FAILED_PRECONDITION,
            "Cannot transition to requested config. It is only legal to transition from one "
            "ModelConfigList to another.",
        )
    _check_list(new.model_config_list.config)
    _check_same_platforms(models(old), new.model_config_list.config)


def _check_list(entries):
    names = set()
    for model in entries:
        if model.name in names:
            raise invalid_argument(
                f"Illegal to list model {model.name} multiple times in config list"
            )
        names.add(model.name)
    for model in entries:
        if not os.path.isabs(model.base_path) and "://" not in model.base_path:
            raise invalid_argument(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()="
                f"{model.base_path}"
            )


def _check_same_platforms(old, entries):
    for model in entries:
        if model.name in old and (new := _platform(model)) != _platform(old[model.name]):
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {model.name} platform was "
                f"{_platform(old[model.name])} and new platform requested is {new}"
            )


def check_platforms(config):
    """Raises a `ServingError` if a model is of another platform than TensorFlow."""
    for model in config.model_config_list.config:
        if (platform := _platform(model)) != _PLATFORM:
            raise invalid_argument(f"Model {model.name} requests unsupported platform {platform}")


def _platform(model):
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
    return _PLATFORM if legacy else model.model_platform


def check_versions(config):
    """Raises a `ServingError` if a model's base path holds no version that its policy wants."""
    for model in config.model_config_list.config:
        if not aspired_versions(model):
            raise not_found(
                f"Unable to find a numerical version path for servable {model.name} at: "
                f"{model.base_path}"
            )


def check_logging(config):
    """Raises a `ServingError` if a model's requests are to be logged: nothing here can.

    TensorFlow Serving's own binary has no collector of requests either.
    """
    if any(model.HasField("logging_config") for model in config.model_config_list.config):
        raise invalid_argument("No request-logger-creator provided.")


def aspired_versions(model):
    """Returns {version: directory} of the versions that the model's policy wants.

    A version is a sub-directory, or a link to one, whose name is an integer; leading zeros are
    allowed. Of two names for one number the shorter wins.

    Raises:
        ServingError: the base path does not exist or cannot be listed.
    """
    path = model.base_path
    try:
        if not tf.io.gfile.isdir(path):
            raise invalid_argument(
                f"Could not find base path {path} for servable {model.name} with error "
                f"NOT_FOUND: {path} not found"
            )
        children = tf.io.gfile.listdir(path)
    except tf.errors.OpError as error:
        raise ServingError(error.error_code, error.message) from error
    found = {}
    for name in sorted(child.rstrip("/") for child in children):
        directory = os.path.join(path, name)
        if (number := _version_number(name)) is not None and tf.io.gfile.isdir(directory):
            found[number] = directory
    return {version: found[version] for version in _wanted(model.model_version_policy, found)}


def _version_number(name):
    if re.fullmatch(r"[0-9]+", name, re.ASCII) and int(name) <= _MAX_VERSION:
        return int(name)
    return None


def _wanted(policy, found):
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return sorted(found)
    if kind == "specific":
        return sorted(found.keys() & set(policy.specific.versions))
    return sorted(found)[-max(policy.latest.num_versions, 1) :]


def missing_versions(model, aspired):
    """Returns what the operator should know about versions that were not found, or None.

    Args:
        model: ModelConfig.
        aspired: what `aspired_versions` returned for it.
    """
    policy = model.model_version_policy
    if policy.WhichOneof("policy_choice") == "specific":
        if not policy.specific.versions:
            return f"No specific versions requested for servable {model.name}."
        missing = sorted(set(policy.specific.versions) - aspired.keys())
        if missing:
            return (
                f"Versions {', '.join(map(str, missing))} of servable {model.name}, which were "
                "requested to be served as 'specific' versions in the servable's version policy, "
                "were not found in the file system"
            )
    if aspired:
        return None
    return (
        f"No versions of servable {model.name} found under base path {model.base_path}. Did you "
        "forget to name your leaf directory as a number (eg. '/1/')?"
    )
