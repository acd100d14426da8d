# One image, two roles: `mcp-gpu agent` on each node, `mcp-gpu gateway` once. docs/image.md tells
# how to build, pin and check it.

# Where it is built: any image with Python 3.11 or later, its venv module and a shell.
ARG BASE=python:3.13-slim
# What it is built on: any with the same minor version of Python. It needs no shell.
ARG RUNTIME=${BASE}

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/runtime.txt requirements/build.txt requirements/trim.py requirements/
# Only wheels: there is no compiler here, and a missing wheel should be named. The environment
# that ships is filled from outside, so that it holds neither pip nor setuptools.
RUN python3 -m venv /opt/build && \
    python3 -m venv --without-pip /opt/mcp-gpu && \
    /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: \
        -r requirements/build.txt && \
    /opt/build/bin/pip --python /opt/mcp-gpu install --no-cache-dir --no-compile \
        --require-hashes --only-binary :all: -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY mcp_gpu mcp_gpu
COPY transports transports
# The time that all files get: the commit's, in seconds, lets anyone repeat a build. By default
# the first that a wheel can hold.
ARG SOURCE_DATE_EPOCH=315532800
# Where RUNTIME has its Python, if not where BASE has its own.
ARG PYTHON=
# Bytecode is written here and never compared with the sources again: at run time the file system
# may be read-only, and both are from one build. -f: the tools before have written some.
RUN /opt/build/bin/python -m hatchling build -t wheel -d /dist && \
    /opt/build/bin/pip --python /opt/mcp-gpu install --no-cache-dir --no-compile --no-deps \
        /dist/*.whl && \
    /opt/build/bin/python requirements/trim.py /opt/mcp-gpu && \
    /opt/build/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application \
        --output-reproducible --gather-license-texts --output-format JSON \
        --output-file /opt/mcp-gpu/sbom.cdx.json \
        /opt/mcp-gpu/bin/python && \
    /opt/mcp-gpu/bin/python -m compileall -qf --invalidation-mode unchecked-hash \
        /opt/mcp-gpu/lib && \
    if [ -n "$PYTHON" ]; then \
        ln -sf "$PYTHON" /opt/mcp-gpu/bin/python3 && \
        sed -i "s#^home = .*#home = ${PYTHON%/*}#" /opt/mcp-gpu/pyvenv.cfg; \
    fi && \
    find /opt/mcp-gpu -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

# A Python that does not fit fails here, not on a node.
FROM ${RUNTIME} AS checked
COPY --from=build /opt/mcp-gpu /opt/mcp-gpu
RUN ["/opt/mcp-gpu/bin/mcp-gpu", "--version"]

FROM ${RUNTIME}
ARG RUNTIME
ARG RUNTIME_DIGEST=unknown
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1980-01-01T00:00:00Z
ARG SOURCE=unknown
ARG SERVER_NAME=local/mcp-gpu
LABEL org.opencontainers.image.title="mcp-gpu" \
      org.opencontainers.image.description="Ask an NVIDIA fleet on Kubernetes what is wrong with its GPUs, over MCP, whatever the cluster's network allows." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${RUNTIME}" \
      org.opencontainers.image.base.digest="${RUNTIME_DIGEST}" \
      io.modelcontextprotocol.server.name="${SERVER_NAME}"
# SAFEPATH: the working directory must never shadow an installed package.
ENV PATH=/opt/mcp-gpu/bin:$PATH PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=checked /opt/mcp-gpu /opt/mcp-gpu
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["mcp-gpu"]
CMD ["--help"]
