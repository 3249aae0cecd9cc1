# The same /pause as `cargo build --release` makes, for those who build with docker or buildah.

# Any image that has the Rust of rust-toolchain.toml, or rustup to fetch it, and a C linker.
ARG RUST_IMAGE=rust:1.95.0-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package pause && chmod 0755 target/release/pause

FROM scratch
LABEL org.opencontainers.image.title="pause" \
      org.opencontainers.image.description="The pod sandbox container for Kubernetes, in about a kilobyte: sleeps, reaps orphans, exits on SIGTERM" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /src/target/release/pause /pause
USER 65535:65535
ENTRYPOINT ["/pause"]
