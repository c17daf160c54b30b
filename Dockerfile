# Build:  docker build -t midslice .
#         docker build -t midslice --build-arg TORCH_INDEX=URL .    (an index with a CPU or CUDA build of torch)
# Run:    docker run -p 11112:11112 -p 8080:8080 -v midslice:/srv/midslice/var \
#                    -v ./config.toml:/srv/midslice/config.toml:ro midslice
# In the container web.host must be "0.0.0.0" for the pages to be seen from outside of it, and there
# must be a user: docker exec -it NAME midslice user add anna --role administrator
# or the set-up link of the log. Until then only /healthz and /readyz answer.

FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/midslice
COPY pyproject.toml requirements.txt README.md LICENSE config.toml ./
# torch first and alone: it is most of the image and changes least.
RUN if [ -n "$TORCH_INDEX" ]; then \
      /opt/midslice/bin/pip install --index-url "$TORCH_INDEX" "torch==2.13.0"; \
    else \
      /opt/midslice/bin/pip install "torch==2.13.0"; \
    fi
# All others by their hashes; torch is trusted as far as the index that it comes from.
RUN /opt/midslice/bin/pip install --require-hashes --no-deps --requirement requirements.txt
COPY node node
COPY inference inference
COPY storage storage
RUN /opt/midslice/bin/pip install --no-deps . && /opt/midslice/bin/pip check

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /srv/midslice --shell /usr/sbin/nologin midslice \
    && mkdir -p /srv/midslice/var \
    && chown -R midslice:midslice /srv/midslice
COPY --from=build /opt/midslice /opt/midslice
COPY --chown=midslice:midslice config.toml /srv/midslice/config.toml
ENV PATH=/opt/midslice/bin:$PATH PYTHONUNBUFFERED=1 HEALTH_URL=http://127.0.0.1:8080/healthz
WORKDIR /srv/midslice
USER midslice
# Received and derived series, the database and the secret. Back the secret up.
VOLUME /srv/midslice/var
EXPOSE 11112 8080
# The stop waits for what runs: node.shutdown_seconds, and some more for the children.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(os.environ['HEALTH_URL'], timeout=4)"]
ENTRYPOINT ["midslice"]
CMD ["serve"]
