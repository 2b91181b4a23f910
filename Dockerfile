# One image for all of Potluck: the index, the peer and the command line.

# Only the manifests, not the sources: dependencies are rebuilt only when a manifest changes.
FROM debian:bookworm-slim AS manifests
WORKDIR /src
COPY . .
RUN find . -name '*.rs' -delete \
    && for manifest in $(find . -name Cargo.toml); do \
        folder=$(dirname "$manifest") \
        && mkdir -p "$folder/src" \
        && touch "$folder/src/lib.rs" \
        && echo 'fn main() {}' > "$folder/src/main.rs"; \
    done \
    && for bench in $(sed -n 's/^name = "\(.*\)"/\1/p' bench/micro/Cargo.toml); do \
        mkdir -p bench/micro/benches && echo 'fn main() {}' > "bench/micro/benches/$bench.rs"; \
    done \
    && rm src/main.rs && touch bench/micro/lib.rs && echo 'fn main() {}' > build.rs

FROM rust:1-bookworm AS build
WORKDIR /src
# `dev` builds sooner, for a test of the image.
ARG PROFILE=release
COPY --from=manifests /src .
# `--locked`: the build fails if Cargo.lock is out of date.
RUN cargo build --profile $PROFILE --locked -p potluck-index -p potluck-peer -p potluck-cli
RUN find . -path ./target -prune -o -path ./bench -prune -o -path ./fuzz -prune -o -path ./tests -prune -o -name '*.rs' -exec rm {} +
COPY . .
# For `--version`: docker build --build-arg POTLUCK_COMMIT=$(git rev-parse --short=9 HEAD)
ARG POTLUCK_COMMIT=unknown
ENV POTLUCK_COMMIT=$POTLUCK_COMMIT
# Cargo compares times, so the sources must be newer than the files built from the empty ones.
RUN find . -path ./target -prune -o -name '*.rs' -exec touch {} + \
    && cargo build --profile $PROFILE --locked -p potluck-index -p potluck-peer -p potluck-cli --bins \
    && mkdir /out \
    && cd target/$(echo $PROFILE | sed 's/^dev$/debug/') \
    && cp potluck potluck-index potluck-peer /out/ \
    && strip /out/*

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="Potluck" \
      org.opencontainers.image.description="Gets large files onto many machines, verified piece by piece" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /out/ /usr/local/bin/
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/potluck/
# Not root. Volumes mounted on these folders inherit their owner.
RUN useradd --system --uid 10001 --create-home --home-dir /home/potluck potluck \
    && mkdir -p /var/lib/potluck/index /var/lib/potluck/peer /samples /downloads /codes \
    && chown -R potluck:potluck /var/lib/potluck /samples /downloads /codes
USER potluck
WORKDIR /downloads
VOLUME ["/var/lib/potluck/index", "/var/lib/potluck/peer"]
EXPOSE 1313 12349
STOPSIGNAL SIGTERM
CMD ["potluck", "--help"]
