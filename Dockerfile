# One image, two roles: `mcp-gpu agent` on each node, `mcp-gpu gateway` once.
# BASE may be pinned by digest; any image with Python 3.11 or later and its venv module will do.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/runtime.txt requirements/build.txt requirements/
# Only wheels: there is no compiler here, and a missing wheel should be named. The environment
# that ships is filled from outside, so that it holds neither pip nor setuptools.
RUN python3 -m venv /opt/build && \
    python3 -m venv --without-pip /opt/mcp-gpu && \
    /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: \
        -r requirements/build.txt && \
    /opt/build/bin/pip --python /opt/mcp-gpu install --no-cache-dir --require-hashes \
        --only-binary :all: -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY mcp_gpu mcp_gpu
COPY transports transports
RUN /opt/build/bin/python -m hatchling build -t wheel -d /dist && \
    /opt/build/bin/pip --python /opt/mcp-gpu install --no-cache-dir --no-deps /dist/*.whl

FROM ${BASE}
# SAFEPATH: the working directory must never shadow an installed package. Bytecode was written
# when the wheels were installed; at run time the file system may be read-only.
ENV PATH=/opt/mcp-gpu/bin:$PATH PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=build /opt/mcp-gpu /opt/mcp-gpu
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["mcp-gpu"]
CMD ["--help"]
