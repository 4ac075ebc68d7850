"""Configuration messages of TensorFlow Serving that its Python package leaves out.

They live in a descriptor pool of their own, so that a package that does bring them one day is no
conflict.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

_PACKAGE = "tensorflow.serving"
_Field = descriptor_pb2.FieldDescriptorProto
_INT, _TEXT, _BOOL = (
    f".{message.DESCRIPTOR.full_name}"
    for message in (wrappers_pb2.Int64Value, wrappers_pb2.StringValue, wrappers_pb2.BoolValue)
)
_REPEATED = {"allowed_batch_sizes"}


def _message(name, **fields):
    """Returns the descriptor of a message.

    A field is a scalar type or the full name of a message; their numbers are in order, from 1.
    """
    message = descriptor_pb2.DescriptorProto(name=name)
    for number, (field, kind) in enumerate(fields.items(), 1):
        label = _Field.LABEL_REPEATED if field in _REPEATED else _Field.LABEL_OPTIONAL
        entry = message.field.add(name=field, number=number, label=label)
        if isinstance(kind, str):
            entry.type, entry.type_name = _Field.TYPE_MESSAGE, kind
        else:
            entry.type = kind
    return message


_POOL = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
_POOL.Add(
    descriptor_pb2.FileDescriptorProto(
        name="kzoo/server_config.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
        message_type=[
            _message(
                "SSLConfig",
                server_key=_Field.TYPE_STRING,
                server_cert=_Field.TYPE_STRING,
                custom_ca=_Field.TYPE_STRING,
                client_verify=_Field.TYPE_BOOL,
            ),
            _message("PrometheusConfig", enable=_Field.TYPE_BOOL, path=_Field.TYPE_STRING),
            _message("MonitoringConfig", prometheus_config=f".{_PACKAGE}.PrometheusConfig"),
            _message(
                "BatchingParameters",
                max_batch_size=_INT,
                batch_timeout_micros=_INT,
                max_enqueued_batches=_INT,
                num_batch_threads=_INT,
                thread_pool_name=_TEXT,
                allowed_batch_sizes=_Field.TYPE_INT64,
                pad_variable_length_inputs=_Field.TYPE_BOOL,
                enable_large_batch_splitting=_BOOL,
                max_execution_batch_size=_INT,
            ),
        ],
    )
)


def _message_class(name):
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


SSLConfig = _message_class("SSLConfig")
MonitoringConfig = _message_class("MonitoringConfig")
BatchingParameters = _message_class("BatchingParameters")
