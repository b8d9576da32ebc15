# The root file system of the managed plugin. Two stages: python-iptables has no wheel and is compiled in the first one.
FROM debian:trixie-slim AS build
RUN apt-get update -q \
 && apt-get install -qy --no-install-recommends python3 python3-dev python3-venv gcc libc6-dev iptables \
 && python3 -m venv /opt/trestle
WORKDIR /src
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN /opt/trestle/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt \
 && /opt/trestle/bin/pip install --no-cache-dir --require-hashes --no-build-isolation -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY driver driver
COPY plugin plugin
RUN /opt/trestle/bin/pip install --no-cache-dir --no-index --no-deps --no-build-isolation . \
 && /opt/trestle/bin/pip uninstall -qy pip setuptools \
 && /usr/bin/python3 -m compileall -q /opt/trestle/lib

FROM debian:trixie-slim
# iptables brings the libraries that python-iptables loads; its programs are not run.
RUN apt-get update -q \
 && apt-get install -qy --no-install-recommends python3 libnftables1 iptables \
 && rm -rf /var/lib/apt/lists/* /usr/share/doc /usr/share/man
COPY --from=build /opt/trestle /opt/trestle
RUN mkdir -p /state /run/docker/plugins
ENTRYPOINT ["/opt/trestle/bin/trestle", "serve"]
