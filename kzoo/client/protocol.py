"""TensorFlow Serving's protocol messages, built at run time.

The published stubs (tensorflow-serving-api) import all of TensorFlow. Here the few messages that a
client needs stand in a pool of their own: they have the public protocol's names and field numbers,
hence the same bytes, and do not clash where TensorFlow registers the same names in the process.
Fields that a client never touches are left out (they are kept as unknown fields), and so are the
`oneof`s, which do not show in the bytes.
"""

import re

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    wrappers_pb2,
)

_DATA_TYPES = (
    "INVALID", "FLOAT", "DOUBLE", "INT32", "UINT8", "INT16", "INT8", "STRING", "COMPLEX64", "INT64",
    "BOOL", "QINT8", "QUINT8", "QINT32", "BFLOAT16", "QINT16", "QUINT16", "UINT16", "COMPLEX128",
    "HALF", "RESOURCE", "VARIANT", "UINT32", "UINT64", "FLOAT8_E5M2", "FLOAT8_E4M3FN",
    "FLOAT8_E4M3FNUZ", "FLOAT8_E4M3B11FNUZ", "FLOAT8_E5M2FNUZ", "INT4", "UINT4", "INT2", "UINT2",
)  # fmt: skip
_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_REF = 100  # the number of a reference type is that of its dtype plus this

# By full name. Fields are written as in a .proto file; types are looked up as protoc does.
_ENUMS = {
    "tensorflow.DataType": {f"DT_{name}": number for number, name in enumerate(_DATA_TYPES)},
    "tensorflow.error.Code": {name: number for number, name in enumerate(_CODES)},
    "tensorflow.serving.ModelVersionStatus.State": {
        "UNKNOWN": 0, "START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50,
    },
}  # fmt: skip
_MESSAGES = {
    "tensorflow.TensorShapeProto": "repeated Dim dim = 2; bool unknown_rank = 3;",
    "tensorflow.TensorShapeProto.Dim": "int64 size = 1; string name = 2;",
    "tensorflow.TensorProto": """
        DataType dtype = 1; TensorShapeProto tensor_shape = 2; int32 version_number = 3;
        bytes tensor_content = 4; repeated float float_val = 5; repeated double double_val = 6;
        repeated int32 int_val = 7; repeated bytes string_val = 8; repeated float scomplex_val = 9;
        repeated int64 int64_val = 10; repeated bool bool_val = 11;
        repeated double dcomplex_val = 12; repeated int32 half_val = 13;
        repeated uint32 uint32_val = 16; repeated uint64 uint64_val = 17;""",
    "tensorflow.TensorInfo":
        "string name = 1; DataType dtype = 2; TensorShapeProto tensor_shape = 3;",
    "tensorflow.SignatureDef": """
        map<string, TensorInfo> inputs = 1; map<string, TensorInfo> outputs = 2;
        string method_name = 3;""",
    "tensorflow.BytesList": "repeated bytes value = 1;",
    "tensorflow.FloatList": "repeated float value = 1;",
    "tensorflow.Int64List": "repeated int64 value = 1;",
    "tensorflow.Feature":
        "BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3;",
    "tensorflow.Features": "map<string, Feature> feature = 1;",
    "tensorflow.Example": "Features features = 1;",
    "tensorflow.serving.ModelSpec": """
        string name = 1; google.protobuf.Int64Value version = 2; string signature_name = 3;
        string version_label = 4;""",
    "tensorflow.serving.PredictRequest": """
        ModelSpec model_spec = 1; map<string, TensorProto> inputs = 2;
        repeated string output_filter = 3;""",
    "tensorflow.serving.PredictResponse":
        "map<string, TensorProto> outputs = 1; ModelSpec model_spec = 2;",
    "tensorflow.serving.ExampleList": "repeated Example examples = 1;",
    "tensorflow.serving.ExampleListWithContext":
        "repeated Example examples = 1; Example context = 2;",
    "tensorflow.serving.Input":
        "ExampleList example_list = 1; ExampleListWithContext example_list_with_context = 2;",
    "tensorflow.serving.ClassificationRequest": "ModelSpec model_spec = 1; Input input = 2;",
    "tensorflow.serving.ClassificationResponse":
        "ClassificationResult result = 1; ModelSpec model_spec = 2;",
    "tensorflow.serving.ClassificationResult": "repeated Classifications classifications = 1;",
    "tensorflow.serving.Classifications": "repeated Class classes = 1;",
    "tensorflow.serving.Class": "string label = 1; float score = 2;",
    "tensorflow.serving.RegressionRequest": "ModelSpec model_spec = 1; Input input = 2;",
    "tensorflow.serving.RegressionResponse":
        "RegressionResult result = 1; ModelSpec model_spec = 2;",
    "tensorflow.serving.RegressionResult": "repeated Regression regressions = 1;",
    "tensorflow.serving.Regression": "float value = 1;",
    "tensorflow.serving.GetModelStatusRequest": "ModelSpec model_spec = 1;",
    "tensorflow.serving.GetModelStatusResponse":
        "repeated ModelVersionStatus model_version_status = 1;",
    "tensorflow.serving.ModelVersionStatus":
        "int64 version = 1; State state = 2; StatusProto status = 3;",
    "tensorflow.serving.StatusProto": "error.Code error_code = 1; string error_message = 2;",
    "tensorflow.serving.GetModelMetadataRequest":
        "ModelSpec model_spec = 1; repeated string metadata_field = 2;",
    "tensorflow.serving.GetModelMetadataResponse":
        "ModelSpec model_spec = 1; map<string, google.protobuf.Any> metadata = 2;",
    "tensorflow.serving.SignatureDefMap": "map<string, SignatureDef> signature_def = 1;",
}  # fmt: skip

_FIELD = re.compile(r"(repeated )?(?:map<string, ([\w.]+)>|([\w.]+)) (\w+) = (\d+);")
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_Field, f"TYPE_{name.upper()}")
    for name in ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64")
}


def _add_field(message, name, number, type_name, repeated=False):
    label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if type_name in _SCALARS:
        field.type = _SCALARS[type_name]
    else:
        field.type_name = type_name  # the pool finds out whether it is a message or an enum


def _add_fields(message, text):
    for repeated, map_value, type_name, name, number in _FIELD.findall(text):
        if map_value:
            type_name = "".join(part.title() for part in name.split("_")) + "Entry"
            entry = message.nested_type.add(name=type_name)
            entry.options.map_entry = True
            _add_field(entry, "key", 1, "string")
            _add_field(entry, "value", 2, map_value)
        _add_field(message, name, int(number), type_name, bool(repeated or map_value))


def _add_enum(scope, name, values):
    enum = scope.enum_type.add(name=name)
    for value, number in values.items():
        enum.value.add(name=value, number=number)


def _file(package, *dependencies):
    """The package's messages and enums as a file; names below it with a dot are nested."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"kzoo/client/{package}.proto",
        package=package,
        syntax="proto3",
        dependency=dependencies,
    )
    messages = {}
    for full_name, text in _MESSAGES.items():
        outer, _, name = full_name.rpartition(".")
        if outer == package or outer in messages:
            scope = messages[outer].nested_type if outer in messages else file.message_type
            messages[full_name] = scope.add(name=name)
            _add_fields(messages[full_name], text)
    for full_name, values in _ENUMS.items():
        outer, _, name = full_name.rpartition(".")
        if outer == package or outer in messages:
            _add_enum(messages.get(outer, file), name, values)
    return file


def _build_pool():
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2, wrappers_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    tensorflow, errors = _file("tensorflow"), _file("tensorflow.error")
    known = any_pb2.DESCRIPTOR.name, wrappers_pb2.DESCRIPTOR.name
    serving = _file("tensorflow.serving", tensorflow.name, errors.name, *known)
    for file in (tensorflow, errors, serving):
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _build_pool()


def _message(full_name):
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(full_name))


TensorShapeProto = _message("tensorflow.TensorShapeProto")
TensorProto = _message("tensorflow.TensorProto")
TensorInfo = _message("tensorflow.TensorInfo")
SignatureDef = _message("tensorflow.SignatureDef")
SignatureDefMap = _message("tensorflow.serving.SignatureDefMap")
ModelSpec = _message("tensorflow.serving.ModelSpec")
PredictRequest = _message("tensorflow.serving.PredictRequest")
PredictResponse = _message("tensorflow.serving.PredictResponse")
Example = _message("tensorflow.Example")
ExampleList = _message("tensorflow.serving.ExampleList")
ExampleListWithContext = _message("tensorflow.serving.ExampleListWithContext")
Input = _message("tensorflow.serving.Input")
ClassificationRequest = _message("tensorflow.serving.ClassificationRequest")
ClassificationResponse = _message("tensorflow.serving.ClassificationResponse")
RegressionRequest = _message("tensorflow.serving.RegressionRequest")
RegressionResponse = _message("tensorflow.serving.RegressionResponse")
GetModelStatusRequest = _message("tensorflow.serving.GetModelStatusRequest")
GetModelStatusResponse = _message("tensorflow.serving.GetModelStatusResponse")
ModelVersionStatus = _message("tensorflow.serving.ModelVersionStatus")
StatusProto = _message("tensorflow.serving.StatusProto")
GetModelMetadataRequest = _message("tensorflow.serving.GetModelMetadataRequest")
GetModelMetadataResponse = _message("tensorflow.serving.GetModelMetadataResponse")


def enum_number(enum, name):
    """Returns the number of a value: 1 for "tensorflow.DataType" and "DT_FLOAT"."""
    return _ENUMS[enum][name]


def enum_name(enum, number):
    """Returns the name of a value; its number as text where this protocol has no name for it."""
    if enum == "tensorflow.DataType" and number > _REF:
        number -= _REF
    names = {value: name for name, value in _ENUMS[enum].items()}
    return names.get(number, str(number))
