# One image for all of Potluck: the index, the peer and the command line.

FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# `--locked`: the image holds what Cargo.lock names, or is not built.
RUN cargo build --release --locked --workspace --bins \
    && mkdir /out \
    && cp target/release/potluck target/release/potluck-index target/release/potluck-peer /out/ \
    && strip /out/*

FROM debian:bookworm-slim
COPY --from=build /out/ /usr/local/bin/
# Not root. Volumes mounted on these folders take over their owner.
RUN useradd --system --uid 10001 --create-home --home-dir /home/potluck potluck \
    && mkdir -p /var/lib/potluck/index /var/lib/potluck/peer /samples /downloads \
    && chown -R potluck:potluck /var/lib/potluck /samples /downloads
USER potluck
WORKDIR /downloads
STOPSIGNAL SIGTERM
CMD ["potluck", "--help"]
