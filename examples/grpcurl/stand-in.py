"""Answers `grpcurl -plaintext -d JSON ADDRESS SERVICE/METHOD` where grpcurl is not installed.

Used by test.sh alone. Like grpcurl, it learns the services through gRPC reflection.
"""

import sys

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

plaintext, data_flag, data, address, method = sys.argv[1:]
assert (plaintext, data_flag) == ("-plaintext", "-d"), sys.argv
channel = grpc.insecure_channel(address)
pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
service, _, name = method.partition("/")
rpc = pool.FindServiceByName(service).FindMethodByName(name)
request = json_format.Parse(data, message_factory.GetMessageClass(rpc.input_type)())
answer = channel.unary_unary(
    f"/{method}",
    request_serializer=lambda message: message.SerializeToString(),
    response_deserializer=message_factory.GetMessageClass(rpc.output_type).FromString,
)(request)
print(json_format.MessageToJson(answer))
