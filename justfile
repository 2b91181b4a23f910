# Commands for development. `just` alone lists them.

default:
    @just --list

# The demo: an index and four peers on this machine; one downloads a file from the other three.
demo *ARGS:
    cargo run --release -- demo {{ARGS}}

# Every test.
test:
    cargo test --workspace

# Fuzzes the given targets, or all of them, for a minute in total. Options: --seconds, --runs, --seed.
fuzz *ARGS:
    cargo run --release -p potluck-fuzz -- {{ARGS}}

# Fuzzes one target with libFuzzer (nightly, `cargo install cargo-fuzz`); what it finds joins the corpus.
fuzz-guided TARGET SECONDS="600":
    cargo +nightly fuzz run --features libfuzzer {{TARGET}} -- -max_total_time={{SECONDS}} -max_len=8192

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

# Checks the links of the documents, and makes web pages of them: target/book/index.html.
book:
    docs/check.py
    mdbook build

# Attacks an index and a peer in every known way, in plaintext and as a member, for this many seconds
# each. The tests do so for less than a second.
hostile SECONDS="20" *ATTACKS:
    tests/hostile/run.sh {{SECONDS}} {{ATTACKS}}

# Starts the network of docker-compose.yml, then searches and downloads in it.
containers:
    tests/containers.sh

# The profile `models` of docker-compose.yml, with huggingface_hub and skopeo as clients.
models:
    cargo build --workspace --bin potluck-stand-in
    tests/models.sh

# Images of a real registry through two gateways, with skopeo and containerd; --engine: and Docker.
images *ARGS:
    cargo build --workspace --bin potluck
    tests/images.sh {{ARGS}}

# Two indexes over a real Redis Cluster under random faults: 200 rounds, or as the arguments say.
cluster-faults *ARGS="--rounds 200":
    cargo build -p potluck-index -p potluck-cluster-faults
    target/debug/cluster-faults {{ARGS}}

# Real programs under random faults: 100 rounds, or as the arguments say (tests/faults/README.md).
faults *ARGS="--rounds 100 --keep-going":
    cargo build --workspace
    target/debug/faults {{ARGS}}

# Everything that continuous integration runs.
ci:
    bash .ci/run
