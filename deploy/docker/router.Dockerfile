# The router, and the pod of `helm test`: no torch, no compiler, no shell is needed at run time.
# Built from the root of the checkout: docker build -f deploy/docker/router.Dockerfile .
ARG BASE=python:3.12-slim-bookworm
# "@sha256:..." pins the base's bytes.
ARG DIGEST=

FROM ${BASE}${DIGEST} AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY services services
RUN python -m venv /opt/matryoshka
RUN /opt/matryoshka/bin/python -m pip install --no-cache-dir --no-compile -c constraints.txt '.[router,postgres,s3]'

FROM ${BASE}${DIGEST}
LABEL org.opencontainers.image.title="matryoshka-router" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/matryoshka /opt/matryoshka
ENV PATH=/opt/matryoshka/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /tmp
EXPOSE 8001 9001
ENTRYPOINT ["matryoshka"]
CMD ["serve", "router"]
