# syntax=docker/dockerfile:1
# The service. Build: docker build -t synap .   Run: docker run -p 15500:15500 -v synap:/data -e SYNAP_API_KEY="$KEY" synap
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/synap && /opt/synap/bin/pip install --no-cache-dir ".[server]"

FROM python:3.13-slim
LABEL org.opencontainers.image.title="Synap" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin synap && install -d -o synap -g synap /data
COPY --from=build /opt/synap /opt/synap
ENV PATH=/opt/synap/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 SYNAP_HOST=0.0.0.0 SYNAP_DATA=/data
USER 10001
VOLUME /data
EXPOSE 15500
# Within the container the service is on this machine; a key, where one is set, is in the environment for both.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["synap", "--url", "http://127.0.0.1:15500", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["synap"]
CMD ["serve"]
