# One member of antiphon. Needs neither BuildKit nor a particular registry: both base images are
# arguments. The stand-ins of deploy/test/compose.sh are made for these same two stages.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /build
# .dockerignore lets in only what the build reads.
COPY . .
# What `antiphon --version` says the image was made from: --build-arg ANTIPHON_COMMIT=$(git rev-parse --short=12 HEAD)
ARG ANTIPHON_COMMIT
RUN cargo build --release --locked --bin antiphon && cp target/release/antiphon /antiphon && rm -r target

FROM ${RUNTIME_IMAGE}
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/antiphon/
LABEL org.opencontainers.image.title="antiphon" \
      org.opencontainers.image.description="A replicated event bus" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
# The number is fixed, as it owns the files of the volume.
RUN groupadd --gid 10001 antiphon \
 && useradd --uid 10001 --gid antiphon --no-create-home --home-dir /var/lib/antiphon --shell /usr/sbin/nologin antiphon \
 && install -d -o antiphon -g antiphon -m 0700 /var/lib/antiphon
COPY --from=build /antiphon /usr/local/bin/antiphon
# Loopback is of no use in a container. Without keys a member refuses to start on all addresses.
ENV ANTIPHON_DATA_DIR=/var/lib/antiphon ANTIPHON_HOST=0.0.0.0 ANTIPHON_PEER_LISTEN=0.0.0.0:4100
USER antiphon
WORKDIR /var/lib/antiphon
VOLUME /var/lib/antiphon
EXPOSE 4000 4100
STOPSIGNAL SIGTERM
# Whether the process lives. Whether it may be sent requests is another question (`antiphon health --ready`): what restarts
# unhealthy containers would otherwise restart all members while a quorum is lost, or a long log is applied.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["antiphon", "health"]
ENTRYPOINT ["antiphon"]
CMD ["serve"]
