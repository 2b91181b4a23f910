# The day's commands. `just` alone lists them.

default:
    @just --list

# The main job, in one command: an index and four peers on this machine, one file from three of them at once.
demo *ARGS:
    cargo run --release -- demo {{ARGS}}

# Every test.
test:
    cargo test --workspace

# What must hold before a commit.
check:
    cargo fmt --all --check
    tests/circles.py
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Licences, sources and advisories of everything we depend on.
deny:
    cargo deny check

# The examples, against a real index and two peers.
examples:
    cargo build --workspace
    examples/test.sh

# The network of docker-compose.yml, with a search and a download from it.
containers:
    tests/containers.sh

# All that continuous integration runs.
ci:
    bash .ci/run
