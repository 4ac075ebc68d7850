"""The messages built at run time against the published ones, byte for byte."""

import sys

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import error_codes_pb2, meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
    status_pb2,
)

from kzoo.client import Internal, Unimplemented, protocol
from kzoo.client.metadata import TensorInfo, data_type, dtype_name
from kzoo.client.tensor_protos import from_proto, to_proto
from kzoo.client.tensors import as_input

PUBLISHED = [
    tensor_shape_pb2.TensorShapeProto,
    tensor_pb2.TensorProto,
    meta_graph_pb2.TensorInfo,
    meta_graph_pb2.SignatureDef,
    model_pb2.ModelSpec,
    predict_pb2.PredictRequest,
    predict_pb2.PredictResponse,
    get_model_status_pb2.GetModelStatusRequest,
    get_model_status_pb2.GetModelStatusResponse,
    get_model_status_pb2.ModelVersionStatus,
    get_model_metadata_pb2.GetModelMetadataRequest,
    get_model_metadata_pb2.GetModelMetadataResponse,
    get_model_metadata_pb2.SignatureDefMap,
    status_pb2.StatusProto,
    tf.train.BytesList,
    tf.train.FloatList,
    tf.train.Int64List,
    tf.train.Feature,
    tf.train.Features,
    tf.train.Example,
    input_pb2.ExampleList,
    input_pb2.ExampleListWithContext,
    input_pb2.Input,
    classification_pb2.Class,
    classification_pb2.Classifications,
    classification_pb2.ClassificationResult,
    classification_pb2.ClassificationRequest,
    classification_pb2.ClassificationResponse,
    regression_pb2.Regression,
    regression_pb2.RegressionResult,
    regression_pb2.RegressionRequest,
    regression_pb2.RegressionResponse,
]
INTEGERS = (
    np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64,
)  # fmt: skip
FLOATS = np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.complex64, np.complex128
ARRAYS = [
    *(np.array([[1.5, -0.0, np.nan], [np.inf, 1e-40, 3.0]], dtype) for dtype in FLOATS),
    *(np.array([[np.iinfo(t).min, np.iinfo(t).max], [0, 7]], t) for t in INTEGERS),
    np.array([[True, False]]),
    np.array([[b"a\x00", b"\xff"], [b"", b"z"]], object),
]
ids = [array.dtype.name for array in ARRAYS]


def bits(array):
    return array.tolist() if array.dtype == object else array.tobytes()


def described(descriptor):
    """{field name: its wire type, label, type} as the descriptor tells it."""
    proto = descriptor_pb2.DescriptorProto()
    descriptor.CopyToProto(proto)
    return {
        field.name: (field.number, field.label, field.type, field.type_name)
        for field in proto.field
    }


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda cls: cls.DESCRIPTOR.name)
def test_names_numbers_and_types_are_the_published_ones(published):
    ours = protocol._POOL.FindMessageTypeByName(published.DESCRIPTOR.full_name)
    theirs = described(published.DESCRIPTOR)
    fields = described(ours)
    assert fields
    assert fields == {name: theirs[name] for name in fields}


def test_enums_are_the_published_ones():
    for enum, published in {
        "tensorflow.DataType": types_pb2.DataType,
        "tensorflow.error.Code": error_codes_pb2.Code,
        "tensorflow.serving.ModelVersionStatus.State": (
            get_model_status_pb2.ModelVersionStatus.State
        ),
    }.items():
        for name in protocol._ENUMS[enum]:
            assert protocol.enum_number(enum, name) == published.Value(name)
            assert protocol.enum_name(enum, published.Value(name)) == name
    assert protocol.enum_name("tensorflow.DataType", types_pb2.DT_HALF_REF) == "DT_HALF"
    assert protocol.enum_name("tensorflow.error.Code", 99) == "99"


@pytest.mark.parametrize("array", ARRAYS, ids=ids)
def test_arrays_are_what_tensorflow_reads(array):
    theirs = tensor_pb2.TensorProto.FromString(to_proto(array).SerializeToString())
    tensor = tf.make_ndarray(theirs)
    assert tensor.dtype == array.dtype
    assert tensor.shape == array.shape
    assert bits(tensor) == bits(array)


def values_proto(array):
    """The TensorProto of *_val form, as TensorFlow's C++ code writes it."""
    proto = tf.make_tensor_proto(array.ravel()[0], tf.as_dtype(array.dtype), shape=[1])
    del proto.tensor_shape.dim[:]
    for item in array.ravel()[1:]:
        proto.MergeFrom(tf.make_tensor_proto(item, tf.as_dtype(array.dtype), shape=[]))
    proto.tensor_shape.CopyFrom(tf.TensorShape(array.shape).as_proto())
    assert not proto.tensor_content
    return proto


@pytest.mark.parametrize("encode", [tf.make_tensor_proto, values_proto], ids=["content", "values"])
@pytest.mark.parametrize("array", ARRAYS, ids=ids)
def test_reads_arrays_that_tensorflow_wrote(array, encode):
    proto = protocol.TensorProto.FromString(encode(array).SerializeToString())
    result = from_proto(proto)
    assert result.dtype == array.dtype
    assert result.shape == array.shape
    assert bits(result) == bits(array)
    assert result.flags.writeable


def test_last_value_stands_for_those_that_are_missing():
    published = tf.make_tensor_proto([1, 2], tf.int32)
    published.tensor_content = b""
    published.int_val.extend([1, 2])
    published.tensor_shape.dim[0].size = 4
    proto = protocol.TensorProto.FromString(published.SerializeToString())
    assert from_proto(proto).tolist() == tf.make_ndarray(published).tolist() == [1, 2, 2, 2]


def test_scalars_and_empty_arrays():
    for array in (np.array(2.5), np.zeros((0, 3), np.float32), np.zeros((2, 0), np.int8)):
        proto = to_proto(array)
        published = tensor_pb2.TensorProto.FromString(proto.SerializeToString())
        assert tf.make_ndarray(published).shape == from_proto(proto).shape == array.shape


def test_refuses_too_few_values_and_dtypes_that_numpy_lacks():
    proto = to_proto(np.ones(3))
    proto.tensor_shape.dim[0].size = 2
    with pytest.raises(Internal, match=r"shape \(2,\) came with 3 values"):
        from_proto(proto)
    for name, number in (("resource", 20), ("77", 77)):
        with pytest.raises(Unimplemented, match=f"dtype {name} cannot be held"):
            from_proto(protocol.TensorProto(dtype=number))


def test_bfloat16_needs_ml_dtypes(monkeypatch):
    info = TensorInfo("bfloat16", (None,))
    assert as_input("x", [1.0, 3.14159], info).tolist() == [1.0, 3.140625]
    assert as_input("x", np.array([2.5]), info).dtype == ml_dtypes.bfloat16
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(Unimplemented, match="install the package `ml_dtypes`"):
        as_input("x", [1.0], info)


def test_dtype_names_are_tensorflows():
    for name in ("float16", "float32", "float64", "int8", "uint64", "bool", "string", "bfloat16"):
        assert types_pb2.DataType.Value(data_type(name)) == tf.as_dtype(name).as_datatype_enum
        assert dtype_name(data_type(name)) == name
    assert dtype_name("DT_FLOAT_REF") == "float32"


def test_requests_have_the_same_bytes():
    def request(messages):
        message = messages.PredictRequest()
        message.model_spec.name = "digits"
        message.model_spec.version.value = 3
        message.model_spec.signature_name = "explain_saliency"
        message.inputs["x"].dtype = 1
        message.inputs["x"].float_val.extend([1.0, 2.0])
        message.inputs["x"].tensor_shape.dim.add(size=2)
        message.output_filter.append("score")
        return message.SerializeToString(deterministic=True)

    assert request(protocol) == request(predict_pb2)


def test_metadata_unpacks():
    signatures = get_model_metadata_pb2.SignatureDefMap()
    signatures.signature_def["f"].inputs["x"].dtype = types_pb2.DT_INT8
    published = get_model_metadata_pb2.GetModelMetadataResponse()
    published.metadata["signature_def"].Pack(signatures)
    ours = protocol.GetModelMetadataResponse.FromString(published.SerializeToString())
    unpacked = protocol.SignatureDefMap.FromString(ours.metadata["signature_def"].value)
    assert unpacked.signature_def["f"].inputs["x"].dtype == types_pb2.DT_INT8
    assert ours.SerializeToString() == published.SerializeToString()
