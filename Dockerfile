# One image, two roles: `mcp-gpu agent` on each node, `mcp-gpu gateway` once.
# BASE may be pinned by digest; any Python 3.11+ image will do.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/runtime.txt requirements/build.txt requirements/
RUN python3 -m venv /opt/mcp-gpu && \
    /opt/mcp-gpu/bin/pip install --no-cache-dir --require-hashes -r requirements/runtime.txt && \
    python3 -m venv /opt/build && \
    /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY mcp_gpu mcp_gpu
COPY transports transports
RUN /opt/build/bin/python -m hatchling build -t wheel -d /dist && \
    /opt/mcp-gpu/bin/pip install --no-cache-dir --no-deps /dist/*.whl && \
    /opt/mcp-gpu/bin/pip uninstall --yes pip

FROM ${BASE}
# SAFEPATH: the working directory must never shadow an installed package.
ENV PATH=/opt/mcp-gpu/bin:$PATH PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=build /opt/mcp-gpu /opt/mcp-gpu
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["mcp-gpu"]
CMD ["--help"]
