"""Configuration messages of TensorFlow Serving that its Python package leaves out.

They live in a descriptor pool of their own, so that a package that does bring them one day is no
conflict.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "tensorflow.serving"
_Field = descriptor_pb2.FieldDescriptorProto


def _message(name, **fields):
    """Returns the descriptor of a message; a field is a scalar type or the name of a message."""
    message = descriptor_pb2.DescriptorProto(name=name)
    for number, (field, kind) in enumerate(fields.items(), 1):
        entry = message.field.add(name=field, number=number, label=_Field.LABEL_OPTIONAL)
        if isinstance(kind, str):
            entry.type, entry.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
        else:
            entry.type = kind
    return message


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(
    descriptor_pb2.FileDescriptorProto(
        name="kzoo/server_config.proto",
        package=_PACKAGE,
        syntax="proto3",
        message_type=[
            _message(
                "SSLConfig",
                server_key=_Field.TYPE_STRING,
                server_cert=_Field.TYPE_STRING,
                custom_ca=_Field.TYPE_STRING,
                client_verify=_Field.TYPE_BOOL,
            ),
            _message("PrometheusConfig", enable=_Field.TYPE_BOOL, path=_Field.TYPE_STRING),
            _message("MonitoringConfig", prometheus_config="PrometheusConfig"),
        ],
    )
)


def _message_class(name):
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


SSLConfig = _message_class("SSLConfig")
MonitoringConfig = _message_class("MonitoringConfig")
