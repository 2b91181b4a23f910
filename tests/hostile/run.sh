#!/usr/bin/env bash
# Runs every attack of a hostile client on an index and on a peer, in plaintext and as a member of a
# private network, and prints what each cost the program under attack.
#
#   tests/hostile/run.sh [SECONDS for each attack] [ATTACK...]
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-20}
shift || true
cargo build --workspace --bins
bin=${CARGO_TARGET_DIR:-$PWD/target}/debug
dir=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait; rm -rf "$dir"' EXIT
ulimit -n "$(ulimit -Hn)"

# start NAME COMMAND...: starts a program; sets `pid` and `address`.
start() {
  local name=$1
  shift
  "$@" >"$dir/$name.out" 2>"$dir/$name.log" &
  pid=$!
  pids+=("$pid")
  until address=$(sed -n 's/^listening on //p' "$dir/$name.out") && [ -n "$address" ]; do sleep 0.1; done
}

head -c 4M /dev/urandom >"$dir/file"
status=0
for network in plaintext private; do
  home=$dir/$network
  mkdir -p "$home/host" "$home/honest" "$home/attacker"
  serve=(index --listen 127.0.0.1:0 --store memory --max-calls-per-second 0 --max-connections 2000)
  as_member=()
  scheme=http
  if [ $network = private ]; then
    scheme=https
    HOME=$home/host "$bin/potluck" network create "$home/net" --index https://127.0.0.1:1 >/dev/null
    serve+=(--network "$home/net")
  fi
  HOME=$home/host start "$network-index" "$bin/potluck" "${serve[@]}"
  index=$address index_pid=$pid
  if [ $network = private ]; then
    HOME=$home/host "$bin/potluck" network set-index "https://$index" --dir "$home/net" >/dev/null
    for name in honest attacker; do
      HOME=$home/host "$bin/potluck" network invite --dir "$home/net" --role publisher >"$home/code"
      HOME=$home/$name "$bin/potluck" network join --code-file "$home/code" >/dev/null
    done
    as_member=(--credentials "$home/attacker/.config/potluck/network")
  fi
  HOME=$home/honest start "$network-peer" "$bin/potluck" peer --listen 127.0.0.1:0 \
    --home "$home/peer" --index "$scheme://$index" --share "$dir/file"
  peer=$address peer_pid=$pid
  for target in "index $index $index_pid" "peer $peer $peer_pid"; do
    read -r kind at pid <<<"$target"
    printf '\n%s, %s\n' "$kind" "$network"
    "$bin/hostile-client" --kind "$kind" --address "$at" --pid "$pid" --file "$dir/file" \
      --seconds "$seconds" "${as_member[@]}" "$@" || status=1
  done
done
if grep -l panicked "$dir"/*.log; then status=1; fi
exit $status
