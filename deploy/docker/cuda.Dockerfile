# Encoder and trainer on NVIDIA GPUs: torch brings the CUDA libraries, the node brings the driver.
# Built from the root of the checkout: docker build -f deploy/docker/cuda.Dockerfile .
ARG BASE=python:3.12-slim-bookworm
# "@sha256:..." pins the base's bytes.
ARG DIGEST=

FROM ${BASE}${DIGEST} AS build
# An index with builds of torch for the driver of your nodes; empty: torch as it is published.
ARG TORCH_INDEX=
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY services services
RUN python -m venv /opt/matryoshka
RUN /opt/matryoshka/bin/python -m pip install --no-cache-dir --no-compile ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt '.[encoder,trainer,postgres,s3,kernel]'

FROM ${BASE}${DIGEST}
LABEL org.opencontainers.image.title="matryoshka-cuda" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/matryoshka /opt/matryoshka
# What the container runtime of NVIDIA puts in.
ENV PATH=/opt/matryoshka/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
WORKDIR /tmp
EXPOSE 8000 9000 8002 9002
ENTRYPOINT ["matryoshka"]
CMD ["serve", "encoder"]
