# Commands for development. `just` alone lists them.

default:
    @just --list

# The demo: an index and four peers on this machine; one downloads a file from the other three.
demo *ARGS:
    cargo run --release -- demo {{ARGS}}

# Every test.
test:
    cargo test --workspace

# The checks before a commit.
check:
    cargo fmt --all --check
    tests/circles.py
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Checks licences, sources and advisories of all dependencies.
deny:
    cargo deny --workspace check

# Runs the examples with a real index and two peers.
examples:
    cargo build --workspace
    examples/test.sh

# Starts the network of docker-compose.yml, then searches and downloads in it.
containers:
    tests/containers.sh

# Everything that continuous integration runs.
ci:
    bash .ci/run
