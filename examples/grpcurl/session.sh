#!/bin/sh
# Registers a file by hand, finds it, and unregisters it: every step is one grpcurl call.
#
#   session.sh [INDEX]      the index's address [default: 127.0.0.1:1313]
set -eu
index=${1:-127.0.0.1:1313}
call() { grpcurl -plaintext -d "$2" "$index" "potluck.v1.IndexService/$1"; }

# A file of at most 16 KiB has one leaf, so its root is its SHA-256. JSON shows bytes as base64.
root=$(printf 'a tiny file\n' | sha256sum | cut -d' ' -f1 | xxd -r -p | base64)

# The response contains the file's id and the token that owns the registration. Keep the token
# secret.
answer=$(call Register '{"address": {"port": 5000},
  "files": [{"file": {"size": 12, "root": "'"$root"'"}, "names": ["tiny.txt"]}]}')
token=$(printf '%s' "$answer" | sed -n 's/^ *"token": "\(.*\)",*$/\1/p')

call Query '{"name": "tiny.txt"}'
call Search '{"query": "tin"}'
call Unregister '{"token": "'"$token"'", "all": true}'
