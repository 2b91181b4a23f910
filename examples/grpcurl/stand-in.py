"""Does the work of grpcurl where grpcurl is not installed, for the tests of the documents.

It knows the flags that the documents use. Like grpcurl, it learns the services through gRPC
reflection, prints every response as JSON, and exits with 64 plus the status code if a call fails.
"""

import argparse
import os
import sys
import tempfile

import grpc
from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)


def parse(arguments):
    """What the command line of grpcurl asks for."""
    parser = argparse.ArgumentParser(prog="grpcurl", allow_abbrev=False)
    parser.add_argument("-plaintext", action="store_true")
    parser.add_argument("-unix", action="store_true")
    parser.add_argument("-cacert")
    parser.add_argument("-cert")
    parser.add_argument("-key")
    parser.add_argument("-authority")
    parser.add_argument("-import-path", default=".")
    parser.add_argument("-proto", action="append", default=[])
    parser.add_argument("-max-time", type=float)
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d", default="{}")
    parser.add_argument("address")
    parser.add_argument("words", nargs="+")
    return parser.parse_args(arguments)


def open_channel(options):
    """The channel to the address, with the TLS that the flags choose."""
    target = f"unix:{options.address}" if options.unix else options.address
    settings = []
    if options.plaintext:
        if options.authority:
            settings.append(("grpc.default_authority", options.authority))
        return grpc.insecure_channel(target, settings)
    if options.authority:
        settings.append(("grpc.ssl_target_name_override", options.authority))
    files = (options.cacert, options.key, options.cert)
    pem = [file and open(file, "rb").read() for file in files]
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(*pem), settings)


def pool_of_files(options):
    """The descriptors of the files that `-proto` names."""
    from grpc_tools import protoc  # here, because no other call needs it

    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "set")
        arguments = ["protoc", f"-I{options.import_path}", "--include_imports"]
        if protoc.main([*arguments, f"--descriptor_set_out={out}", *options.proto]) != 0:
            sys.exit(1)
        with open(out, "rb") as file:
            files = descriptor_pb2.FileDescriptorSet.FromString(file.read())
    pool = DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


def print_services(channel, words):
    """Prints what `list` and `list SERVICE` print."""
    database = ProtoReflectionDescriptorDatabase(channel)
    if len(words) == 1:
        names = database.get_services()
    else:
        service = DescriptorPool(database).FindServiceByName(words[1])
        names = [f"{service.full_name}.{method.name}" for method in service.methods]
    print("\n".join(sorted(names)))


def call(channel, options):
    """Calls the method, and prints the responses."""
    pool = pool_of_files(options) if options.proto else DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service, _, name = options.words[0].partition("/")
    method = pool.FindServiceByName(service).FindMethodByName(name)
    data = sys.stdin.read() if options.d == "@" else options.d
    request = json_format.Parse(data, message_factory.GetMessageClass(method.input_type)())
    headers = [tuple(part.strip() for part in header.split(":", 1)) for header in options.H]
    responses = channel.unary_stream(
        f"/{options.words[0]}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )(request, timeout=options.max_time, metadata=[(key.lower(), value) for key, value in headers])
    for response in responses:
        print(json_format.MessageToJson(response, ensure_ascii=False), flush=True)


def main():
    options = parse(sys.argv[1:])
    try:
        with open_channel(options) as channel:
            if options.words[0] == "list":
                print_services(channel, options.words)
            else:
                call(channel, options)
    except grpc.RpcError as error:
        code = "".join(word.capitalize() for word in error.code().name.split("_"))
        print(f"ERROR:\n  Code: {code}\n  Message: {error.details()}", file=sys.stderr)
        sys.exit(64 + error.code().value[0])


if __name__ == "__main__":
    main()
