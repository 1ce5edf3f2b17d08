# One image for the entry points, the tracking server, the workers and the study. docs/containers.md says how it is built.
# What changes seldom comes first: a change of code rebuilds the last two layers.
ARG BASE_IMAGE=debian:bookworm-slim
# An image with wheels at its root, for machines that have some on disk.
ARG WHEELS_IMAGE=scratch

FROM ${WHEELS_IMAGE} AS wheels
WORKDIR /wheels

FROM ${BASE_IMAGE} AS base
RUN apt-get update -q \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3 ca-certificates \
 && rm -rf /var/lib/apt/lists/*

FROM base AS packages
RUN apt-get update -q \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
# Optional secrets: the builder's own pip configuration and certificates, which stay out of the layers.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle,target=/run/ca.crt \
    export PIP_CERT=$(ls /run/ca.crt 2>/dev/null); \
    python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv
# cuda: torch as the package index has it, CUDA included.  cpu: torch's CPU wheels.
ARG FLAVOUR=cuda
# Requirements in place of those of pyproject.toml, with spaces between them alone; for wheels on disk.
ARG OVERRIDES=""
COPY pyproject.toml docker/packages.sh /build/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle,target=/run/ca.crt \
    --mount=type=bind,from=wheels,target=/wheels \
    bash /build/packages.sh

FROM base
RUN useradd --create-home --uid 1000 lab \
 && install -d -m 1777 /mlflow/tmp /mlflow/projects /var/lib/compression \
 && install -d -o lab -g lab /artifacts
COPY --from=packages /opt/lab /opt/lab
ENV PATH=/opt/lab/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    GIT_PYTHON_REFRESH=quiet \
    COMPRESSION_HOME=/var/lib/compression \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /mlflow/projects/code
COPY . .
ARG COMMIT=""
LABEL compression.commit=${COMMIT}
RUN --mount=type=bind,from=packages,source=/opt/uv,target=/opt/uv \
    /opt/uv/bin/uv pip install --python /opt/lab/bin/python --offline --no-deps --no-build-isolation --editable . \
 && install -m 755 docker/as-owner.sh /usr/local/bin/as-owner
ENTRYPOINT ["as-owner"]
CMD ["compression", "--help"]
