# The root file system of the managed plugin: Debian's Python and netfilter libraries, and a virtual environment.
# script/plugin build makes it; where no registry can be reached that script makes the base image as well.
# For the same bytes again: --build-arg BASE=debian@sha256:..., the digest that an earlier build said.
ARG BASE=debian:trixie-slim

# First stage: python-iptables has no wheel and is compiled. Nobody is root while code from the package index runs.
FROM ${BASE} AS build
RUN apt-get update -q \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends ca-certificates gcc libc6-dev python3-dev python3-venv
RUN install -d -o nobody /opt/trestle /src
USER nobody
WORKDIR /src
# pip compiles in a folder of a random name, which must not show in what is compiled.
ENV HOME=/tmp PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 CFLAGS=-g0 LDFLAGS=-Wl,--build-id=none
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN python3 -m venv /opt/trestle \
 && /opt/trestle/bin/pip install --require-hashes -r requirements/build.txt \
 && /opt/trestle/bin/pip install --require-hashes --no-build-isolation -r requirements/runtime.txt
COPY --chown=nobody:nogroup pyproject.toml README.md LICENSE ./
COPY --chown=nobody:nogroup driver driver
COPY --chown=nobody:nogroup plugin plugin
COPY packaging/slim-venv packaging/slim-venv
RUN /opt/trestle/bin/pip install --no-index --no-deps --no-build-isolation . \
 && sh packaging/slim-venv /opt/trestle

# Second stage: what it needs at run time, less what only a system that installs packages needs.
# iptables brings the match libraries that python-iptables loads; its programs are not run.
FROM ${BASE} AS system
COPY packaging/slim-system /tmp/slim-system
RUN apt-get update -q \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3 libnftables1 iptables \
 && sh /tmp/slim-system
COPY --from=build --chown=root:root /opt/trestle /opt/trestle
RUN mkdir -p /state /host/proc-sys-net /run/docker/plugins

FROM scratch
COPY --from=system / /
ENTRYPOINT ["/opt/trestle/bin/trestle", "serve"]
