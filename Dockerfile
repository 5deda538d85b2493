# One image for every role: `serve` runs gateway and dispatcher, `serve --role api|dispatcher` one of them.

FROM rust:1.95-bookworm AS builder
WORKDIR /src

# Of the whole context only what the build reads, so that a change to a script or a page compiles nothing again.
COPY Cargo.toml Cargo.lock ./
COPY migrations migrations
COPY engine engine
COPY benches benches
COPY loadtest loadtest
# The SDK of transforms is in the binary.
COPY sdk-wasm sdk-wasm

# The caches keep downloaded crates and compiled dependencies from one build to the next. The program is copied out,
# because a cache is no part of the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked -p eventpulse \
    && cp target/release/eventpulse /usr/local/bin/eventpulse


FROM debian:bookworm-slim

# Certificates of the public authorities: endpoints are called by https.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*

# A fixed number, so that an orchestrator can check that it is not root.
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin eventpulse

COPY --from=builder /usr/local/bin/eventpulse /usr/local/bin/eventpulse
COPY LICENSE LICENSE-MIT LICENSE-APACHE /usr/share/doc/eventpulse/

USER 10001:10001
WORKDIR /tmp

# 3000: gateway. 4000: health and metrics of the dispatcher.
EXPOSE 3000 4000

HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["eventpulse", "healthcheck"]

# SIGTERM, docker's own choice, drains: give it longer than the grace for what is in flight (docker stop --time 40).
ENTRYPOINT ["eventpulse"]
CMD ["serve"]
