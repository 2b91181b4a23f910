"""The committed stubs are those of /proto."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from google.protobuf import descriptor_pb2


def test_the_stubs_are_up_to_date(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    files = sorted((ROOT / "proto/potluck/v1").glob("*.proto"))
    out = tmp_path / "descriptors"
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I",
        str(ROOT / "proto"),
        f"--descriptor_set_out={out}",
    ]
    subprocess.run([*command, *map(str, files)], check=True)
    current = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    assert len(current.file) == len(files)
    for file in current.file:
        module = importlib.import_module(file.name.replace("/", ".").replace(".proto", "_pb2"))
        committed = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(committed)
        for one in (file, committed):
            clear_json_names(one.message_type)
        assert committed == file, f"{file.name} changed: run clients/python/generate.sh"


def clear_json_names(messages: object) -> None:
    for message in messages:  # type: ignore[attr-defined]
        for field in message.field:
            field.ClearField("json_name")
        clear_json_names(message.nested_type)
