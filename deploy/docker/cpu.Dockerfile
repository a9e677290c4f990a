# Encoder and trainer on CPUs, with the default model's weights in the image.
# Built from the root of the checkout: docker build -f deploy/docker/cpu.Dockerfile .
ARG BASE=python:3.12-slim-bookworm
# "@sha256:..." pins the base's bytes.
ARG DIGEST=

FROM ${BASE}${DIGEST} AS build
# An index with builds of torch without CUDA, which make a much smaller image; empty: none.
ARG TORCH_INDEX=
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY services services
RUN python -m venv /opt/matryoshka
RUN /opt/matryoshka/bin/python -m pip install --no-cache-dir --no-compile ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt '.[encoder,trainer,postgres,s3]'

FROM ${BASE}${DIGEST}
LABEL org.opencontainers.image.title="matryoshka-cpu" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/matryoshka /opt/matryoshka
ENV PATH=/opt/matryoshka/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
USER 65532:65532
WORKDIR /tmp
EXPOSE 8000 9000 8002 9002
ENTRYPOINT ["matryoshka"]
CMD ["serve", "encoder"]
