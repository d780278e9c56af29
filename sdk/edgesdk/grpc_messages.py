"""The messages of inference.GRPCInferenceService, described here in a pool of their own, so that no other package's clash.

Field numbers are those of the Open Inference Protocol (kserve/open-inference-protocol, open_inference_grpc.proto).
`ModelMetadataResponse.parameters` is MLServer's addition, which other clients skip.
"""

from __future__ import annotations

from typing import Any

from edgesdk_converters.errors import MissingExtra

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError as _error:
    raise MissingExtra("server", "protobuf") from _error

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
_REPEATED = "*"
_ONE_OF = "?"

# Message: fields in the order of their numbers, each "name type", "name *type" for a repeated one, "name ?type" for one of
# the message's only choice, "name <type>" for a map from strings.
_MESSAGES: dict[str, tuple[str, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("live bool",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("ready bool",),
    "ModelReadyRequest": ("name string", "version string"),
    "ModelReadyResponse": ("ready bool",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("name string", "version string", "extensions *string"),
    "ModelMetadataRequest": ("name string", "version string"),
    "ModelMetadataResponse": (
        "name string",
        "versions *string",
        "platform string",
        "inputs *ModelMetadataResponse.TensorMetadata",
        "outputs *ModelMetadataResponse.TensorMetadata",
        "parameters <InferParameter>",
    ),
    "ModelMetadataResponse.TensorMetadata": ("name string", "datatype string", "shape *int64"),
    "InferParameter": (
        "bool_param ?bool",
        "int64_param ?int64",
        "string_param ?string",
        "double_param ?double",
        "uint64_param ?uint64",
    ),
    "InferTensorContents": (
        "bool_contents *bool",
        "int_contents *int32",
        "int64_contents *int64",
        "uint_contents *uint32",
        "uint64_contents *uint64",
        "fp32_contents *float",
        "fp64_contents *double",
        "bytes_contents *bytes",
    ),
    "ModelInferRequest": (
        "model_name string",
        "model_version string",
        "id string",
        "parameters <InferParameter>",
        "inputs *ModelInferRequest.InferInputTensor",
        "outputs *ModelInferRequest.InferRequestedOutputTensor",
        "raw_input_contents *bytes",
    ),
    "ModelInferRequest.InferInputTensor": (
        "name string",
        "datatype string",
        "shape *int64",
        "parameters <InferParameter>",
        "contents InferTensorContents",
    ),
    "ModelInferRequest.InferRequestedOutputTensor": ("name string", "parameters <InferParameter>"),
    "ModelInferResponse": (
        "model_name string",
        "model_version string",
        "id string",
        "parameters <InferParameter>",
        "outputs *ModelInferResponse.InferOutputTensor",
        "raw_output_contents *bytes",
    ),
    "ModelInferResponse.InferOutputTensor": (
        "name string",
        "datatype string",
        "shape *int64",
        "parameters <InferParameter>",
        "contents InferTensorContents",
    ),
}


def _described() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="edgesdk_inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for full, fields in _MESSAGES.items():
        outer, _, name = full.rpartition(".")
        message = made[full] = (made[outer].nested_type if outer else file.message_type).add(name=name)
        for number, field in enumerate(fields, 1):
            _add_field(message, full, number, *field.split(" "))
    return file


def _add_field(message: Any, full: str, number: int, name: str, kind: str) -> None:
    proto = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=number, label=proto.LABEL_OPTIONAL)
    if kind.startswith(_ONE_OF):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index, kind = 0, kind[1:]
    if kind.startswith("<"):  # a map is a repeated message of key and value, with a mark
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _add_field(entry, f"{full}.{entry.name}", 1, "key", "string")
        _add_field(entry, f"{full}.{entry.name}", 2, "value", kind[1:-1])
        kind = f"{_REPEATED}{full}.{entry.name}"
    if kind.startswith(_REPEATED):
        field.label, kind = proto.LABEL_REPEATED, kind[1:]
    if kind[0].isupper():
        field.type, field.type_name = proto.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = getattr(proto, f"TYPE_{kind.upper()}")


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_described())


def message(name: str) -> Any:
    """The class of a message, e.g. "ModelInferRequest"."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
