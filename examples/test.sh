#!/usr/bin/env bash
# Runs every example with a real index and real peers on loopback, and compares the bytes.
#
#   examples/test.sh [BIN]      the folder of the programs [default: target/debug]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "${1:-target/debug}")
venv=${EXAMPLES_VENV:-${CARGO_TARGET_DIR:-$PWD/target}/examples-venv}
work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import cryptography, grpc_tools, grpc_reflection' 2>/dev/null ||
  "$venv/bin/pip" install --quiet grpcio grpcio-tools grpcio-reflection cryptography
"$venv/bin/python" -m grpc_tools.protoc -I proto --python_out="$work" --grpc_python_out="$work" proto/potluck/v1/*.proto
export PYTHONPATH=$work
if ! command -v grpcurl >/dev/null; then
  echo "grpcurl is not installed: a stand-in runs its example"
  printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$venv/bin/python" "$PWD/examples/grpcurl/stand-in.py" >"$work/grpcurl"
  chmod +x "$work/grpcurl"
  PATH=$PATH:$work
fi

# start NAME PROGRAM ARGS...: starts it and sets `address` to its listening address.
start() {
  local name=$1
  shift
  "$@" >"$work/$name.out" 2>"$work/$name.err" &
  pids+=($!)
  for _ in $(seq 100); do
    address=$(sed -n 's/^listening on //p' "$work/$name.out")
    [ -z "$address" ] || return 0
    sleep 0.1
  done
  cat "$work/$name.err" >&2
  exit 1
}
start index "$bin/potluck-index" --listen 127.0.0.1:0 --data-dir "$work/index"
index=$address
seq 1 3000000 >"$work/numbers.txt"
for peer in one two; do
  start "$peer" "$bin/potluck-peer" --listen 127.0.0.1:0 --home "$work/$peer" --index "http://$index"
  "$venv/bin/python" examples/python/control.py "$work/$peer/control.sock" "$work/numbers.txt"
done
for attempt in $(seq 100); do
  [ "$("$bin/potluck" --index "http://$index" --json query numbers.txt 2>/dev/null |
    grep -o '"complete":true' | wc -l)" = 2 ] && break
  [ "$attempt" -lt 100 ] || { echo "the index does not list both peers" >&2; exit 1; }
  sleep 0.1
done

"$venv/bin/python" examples/python/client.py "$index" numbers.txt "$work/copy.txt"
cmp "$work/numbers.txt" "$work/copy.txt"

examples/grpcurl/session.sh "$index" | tee "$work/session"
grep -q '"removed": "1"' "$work/session"

# The same in a private network, with the certificate of a member.
port=$("$venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$bin/potluck" network create "$work/kitchen" --index "https://127.0.0.1:$port" >"$work/code"
start private-index "$bin/potluck-index" --listen "127.0.0.1:$port" --network "$work/kitchen" --store memory
"$bin/potluck" --credentials "$work/member" network join --code-file "$work/code"
start private-peer "$bin/potluck-peer" --listen 127.0.0.1:0 --home "$work/private" --credentials "$work/member" \
  --share "$work/numbers.txt"
for attempt in $(seq 100); do
  "$bin/potluck" --credentials "$work/member" --json query numbers.txt >/dev/null 2>&1 && break
  [ "$attempt" -lt 100 ] || { echo "the private index does not list the file" >&2; exit 1; }
  sleep 0.1
done
"$venv/bin/python" examples/python/private_client.py "$work/member" "127.0.0.1:$port" numbers.txt "$work/private.txt"
cmp "$work/numbers.txt" "$work/private.txt"

"$venv/bin/python" examples/clients.py "$bin"
echo "examples: 5 passed, 0 failed"
