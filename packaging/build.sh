#!/usr/bin/env bash
# Builds the Debian package of all three programs: packaging/build.sh [PROFILE]. Prints its path.
# PROFILE is `release`, or `dev` for a quick test of the package itself. Needs cargo-deb.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-release}
target=${CARGO_TARGET_DIR:-$PWD/target}
folder=$profile
[ "$profile" = dev ] && folder=debug

packages=(-p potluck-index -p potluck-peer -p potluck-cli)
# All packages together have other features. Tests build them so, and nothing is built twice.
compression=()
if [ "$profile" = dev ]; then packages=(--workspace) compression=(--fast); fi
cargo build --locked --profile "$profile" --bins "${packages[@]}" >&2

# What the programs tell about themselves.
made=packaging/generated
rm -rf "$made"
mkdir -p "$made/man"
potluck=$target/$folder/potluck
for shell in bash zsh fish; do "$potluck" completions "$shell" >"$made/potluck.$shell"; done
"$potluck" man "$made/man" >&2
gzip -9n "$made"/man/*
gzip -9nc Cargo.lock >"$made/Cargo.lock.gz"
packaging/sbom.py >"$made/sbom.cdx.json"

cargo deb --package potluck-cli --profile "$profile" --no-build --no-strip ${compression[@]+"${compression[@]}"} ${POTLUCK_DEB_ARGS:-}
