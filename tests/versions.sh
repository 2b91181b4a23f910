#!/usr/bin/env bash
# Versions that meet: index, seeder and receiver of an older and a newer build in every mixture, and the
# newer build with what the older one stored.
#   tests/versions.sh OLDER NEWER    two folders with the programs, such as a copy of target/debug
set -euo pipefail
older=$(readlink -f "$1") newer=$(readlink -f "$2")
folder=
started=()
cleanup() {
  [ ${#started[@]} = 0 ] || { kill "${started[@]}" && wait "${started[@]}"; } 2>/dev/null || true
  started=()
  [ -z "$folder" ] || rm -rf "$folder"
}
trap cleanup EXIT

# serve NAME WORDS…: starts a service, and waits for its address.
serve() {
  local name=$1
  shift
  : >"$folder/$name.out"
  "$@" >"$folder/$name.out" 2>"$folder/$name.log" &
  started+=($!)
  for _ in $(seq 200); do
    address=$(sed -n 's/^listening on //p' "$folder/$name.out")
    [ -z "$address" ] || return 0
    sleep 0.1
  done
  cat "$folder/$name.log" >&2
  return 1
}

for mixture in "$older $newer $newer" "$newer $older $newer" "$newer $newer $older" \
  "$older $older $newer" "$older $newer $older" "$newer $older $older"; do
  read -r index seeder receiver <<<"$mixture"
  folder=$(mktemp -d)
  export HOME=$folder POTLUCK_NO_NETWORK=1
  serve index "$index/potluck-index" --listen 127.0.0.1:0 --data-dir "$folder/index"
  export POTLUCK_INDEX=$address
  serve peer "$seeder/potluck-peer" --listen 127.0.0.1:0 --home "$folder/peer"
  head -c 5000000 /dev/urandom >"$folder/content"
  "$seeder/potluck" -q --peer "unix:$folder/peer/control.sock" share "$folder/content" >/dev/null
  "$receiver/potluck" -q get content -o "$folder/copy" >/dev/null
  cmp "$folder/content" "$folder/copy"
  printf 'works: index %s, seeder %s, receiver %s\n' "$index" "$seeder" "$receiver"
  cleanup
done

# An upgrade: the newer programs open the folders of the older ones.
folder=$(mktemp -d)
export HOME=$folder POTLUCK_NO_NETWORK=1
head -c 5000000 /dev/urandom >"$folder/content"
for build in "$older" "$newer"; do
  serve index "$build/potluck-index" --listen 127.0.0.1:0 --data-dir "$folder/index"
  export POTLUCK_INDEX=$address
  serve peer "$build/potluck-peer" --listen 127.0.0.1:0 --home "$folder/peer"
  if [ "$build" = "$older" ]; then
    "$build/potluck" -q --peer "unix:$folder/peer/control.sock" share "$folder/content" >/dev/null
    "$build/potluck" query content | grep -q content
    kill "${started[@]}" && wait "${started[@]}" || true
    started=()
  fi
done
"$newer/potluck" -q get content -o "$folder/copy" >/dev/null
cmp "$folder/content" "$folder/copy"
printf 'works: the folders of %s, opened by %s\n' "$older" "$newer"
