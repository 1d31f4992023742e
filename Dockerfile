ARG BASE_IMAGE=cpu-base
ARG PYTHON_IMAGE=python:3.11-slim-trixie

# One file for every image. The first ARG chooses the variant and has to stay above the first FROM: below it, it would be ignored
# and every build would silently be the CPU's.
#
#   docker build -t vector-api:cpu .                                       API and CPU worker
#   docker build -t vector-api:gpu --build-arg BASE_IMAGE=gpu-base .       API, GPU and CPU worker
#   docker build -t vector-api:api --target api .                          the API alone, without torch
#   docker build -t vector-api:flower --target flower .                    Flower, which shows the workers
#   docker build -t vector-api:cpu-baked --target baked .                  with the model in it, for machines without a network
#
# No CUDA base image: torch's CUDA wheels bring their libraries, and the driver comes from the host.

FROM ${PYTHON_IMAGE} AS common
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN groupadd --gid 10001 vector-api && \
    useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin vector-api

# TORCH_INDEX_URL: where torch, and torch alone, is looked for beside the default index.
FROM common AS cpu-base
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV VARIANT=cpu \
    REQUIREMENTS=requirements.txt \
    TORCH_INDEX_URL=${TORCH_INDEX_URL}

# The default index serves CUDA 13. Cards older than Turing: --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu126
FROM common AS gpu-base
ARG TORCH_INDEX_URL=
ENV VARIANT=gpu \
    REQUIREMENTS=requirements-gpu.txt \
    TORCH_INDEX_URL=${TORCH_INDEX_URL} \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The variant that was chosen
FROM ${BASE_IMAGE} AS variant

FROM variant AS builder
WORKDIR /build
RUN python3 -m venv /opt/venv
COPY requirements-api.txt requirements-base.txt requirements-store.txt requirements.txt requirements-gpu.txt \
     requirements.lock requirements-gpu.lock requirements-store.lock ./
# Further packages, such as nncf for DTYPE=int8
ARG EXTRA_PACKAGES=
# torch first and alone, so that nothing else can come from its index; then everything else by its hash; then what is in no lock: the
# libraries that torch's CUDA build names, and EXTRA_PACKAGES.
# hadolint ignore=DL3013,SC2086
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --no-deps --retries 1 --timeout 60 \
      ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} "$(grep '^torch==' "${REQUIREMENTS}")" && \
    python -m pip install --no-deps --require-hashes -r "${REQUIREMENTS%.txt}.lock" -r requirements-store.lock && \
    python -m pip install -r "${REQUIREMENTS}" ${EXTRA_PACKAGES} && \
    python -m pip check
# Where torch's own index is out of reach pip takes torch from the default one, which may be the other build.
RUN python -c "import os, sys, torch; found = 'gpu' if torch.version.cuda else 'cpu'; \
    sys.exit(0 if found == os.environ['VARIANT'] else f'torch {torch.__version__} is no build for the {os.environ[\"VARIANT\"]} variant: could TORCH_INDEX_URL be reached?')"

FROM variant AS runtime
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="vector-api" \
      org.opencontainers.image.description="Self-hosted text embedding as durable background jobs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# /models is the one place that is written to, beside /tmp. A new volume there takes over its owner.
RUN mkdir /models && chown 10001:10001 /models
ENV HOME=/tmp \
    HF_HOME=/models \
    CACHE_DIR=/models/converted \
    API_HOST=0.0.0.0 \
    ALIVE_FILE=/tmp/alive
COPY --from=builder /opt/venv /opt/venv
WORKDIR /app
COPY core core
COPY doctor doctor
COPY api api
COPY worker worker
RUN python -m compileall -q .
USER 10001:10001
EXPOSE 8000
# No HEALTHCHECK: API and worker need different ones, and a worker would inherit the API's.
CMD ["python", "-m", "api"]

FROM runtime AS baked
ARG MODEL_NAME=sentence-transformers/all-MiniLM-L6-v2
ARG MODEL_REVISION=
# A mirror of the hub
ARG HF_ENDPOINT=https://huggingface.co
ENV MODEL_NAME=${MODEL_NAME} \
    MODEL_REVISION=${MODEL_REVISION} \
    HF_HOME=/opt/models
# Root writes it, the service reads it. /models stays for converted models, which are written at the first start.
# hadolint ignore=DL3002
USER 0:0
RUN HF_ENDPOINT="${HF_ENDPOINT}" python -c "import os; from sentence_transformers import SentenceTransformer; \
    SentenceTransformer(os.environ['MODEL_NAME'], revision=os.environ['MODEL_REVISION'] or None, device='cpu')" && \
    chmod -R a+rX /opt/models
USER 10001:10001
ENV HF_HUB_OFFLINE=1

FROM common AS api-builder
WORKDIR /build
RUN python3 -m venv --without-pip /opt/venv
COPY requirements-api.lock requirements-store.lock ./
# Further packages, such as pyarrow for results as Arrow and Parquet
ARG EXTRA_PACKAGES=
# numpy's tests are a fifth of what the API installs.
# hadolint ignore=DL3013,SC2086
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --no-deps --require-hashes -r requirements-api.lock -r requirements-store.lock && \
    if [ -n "${EXTRA_PACKAGES}" ]; then pip --python /opt/venv/bin/python install ${EXTRA_PACKAGES}; fi && \
    pip --python /opt/venv/bin/python check && \
    find /opt/venv/lib/python3*/site-packages/numpy -type d -name tests -prune -exec rm -rf {} +

FROM common AS api
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="vector-api" \
      org.opencontainers.image.description="The API of vector-api, without models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV HOME=/tmp \
    API_HOST=0.0.0.0
COPY --from=api-builder /opt/venv /opt/venv
WORKDIR /app
COPY core core
COPY doctor doctor
COPY api api
RUN python -m compileall -q .
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "api"]

FROM api AS flower
# hadolint ignore=DL3002
USER 0:0
COPY requirements-flower.lock /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --no-deps --require-hashes -r /build/requirements-flower.lock && \
    pip --python /opt/venv/bin/python check
LABEL org.opencontainers.image.description="Flower, which shows the workers of vector-api"
COPY deploy/flowerconfig.py ./
USER 10001:10001
EXPOSE 5555
CMD ["celery", "-A", "flowerconfig", "flower"]

# The last stage is what is built when no target is named.
FROM runtime AS final
