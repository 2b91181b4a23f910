#!/usr/bin/env bash
# Generates src/potluck/v1 from /proto.
#
#   clients/python/generate.sh      needs Python 3.9 to 3.12
#
# The compiler is old on purpose: what protoc 4.25 generates works with every version of the protobuf
# package from 4.25 on, while newer compilers generate code for two major versions only.
set -euo pipefail
cd "$(dirname "$0")"
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet grpcio-tools==1.62.3 mypy-protobuf==3.6.0 'setuptools<80'
rm -f src/potluck/v1/*_pb2*
PATH=$venv/bin:$PATH python -m grpc_tools.protoc -I ../../proto --python_out=src --mypy_out=quiet:src \
  --grpc_python_out=src --mypy_grpc_out=quiet:src ../../proto/potluck/v1/*.proto
# Files without a service.
rm -f src/potluck/v1/{collection,common}_pb2_grpc.py*
