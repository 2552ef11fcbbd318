# syntax=docker/dockerfile:1
# latentd in a container, in two forms:
#
#   docker build --target cpu  -t latentd:cpu  .      Debian slim; below 150 MB with the shipped model
#   docker build --target cuda -t latentd:cuda .      NVIDIA's base image, with cuBLASLt and cuDNN
#
# tests/deploy/test_container.py reads this file and carries out the steps of the target cpu without an engine.
ARG DEBIAN=bookworm-slim
ARG CUDA=12.8.1
ARG UBUNTU=ubuntu24.04

# ---- cuda ----

FROM nvidia/cuda:${CUDA}-cudnn-devel-${UBUNTU} AS build-cuda
RUN apt-get update && apt-get install -y --no-install-recommends binutils ccache dpkg-dev g++ gcc libc6-dev libcjson-dev \
    libcurl4-openssl-dev libffmpeg-nvenc-dev libgif-dev libjpeg-dev libmicrohttpd-dev libopenh264-dev libpng-dev libssl-dev libwebp-dev make \
    pkg-config zlib1g-dev
WORKDIR /src
COPY deploy/docker/ffmpeg.sh deploy/docker/
RUN deploy/docker/ffmpeg.sh /opt/ffmpeg --nvenc
COPY Makefile ./
COPY include include
COPY src src
COPY kernels kernels
COPY models/latentd models/latentd
COPY deploy/docker deploy/docker
ARG COMMIT=unknown
RUN --mount=type=cache,target=/root/.cache/ccache \
    PATH=/usr/lib/ccache:$PATH PKG_CONFIG_PATH=/opt/ffmpeg/lib/pkgconfig LD_LIBRARY_PATH=/opt/ffmpeg/lib \
    make -s -j"$(nproc)" CUDA=1 COMMIT=$COMMIT WERROR=0 PREFIX=/usr DESTDIR=/out install && \
    deploy/docker/stage.sh /out /opt/ffmpeg

# cuBLASLt and cuDNN compete with latentd's own kernels, and cuDNN opens NVRTC for engines that it compiles at run time.
FROM nvidia/cuda:${CUDA}-base-${UBUNTU} AS cuda
COPY --from=build-cuda /out/usr/share/latentd/packages /usr/share/latentd/
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates \
    cuda-nvrtc-12-8 libcublas-12-8 libcudnn9-cuda-12 $(cat /usr/share/latentd/packages) && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/* && \
    useradd --uid 10001 --user-group --no-log-init --home-dir /var/lib/latentd --create-home latentd && \
    mkdir /models && chown latentd:latentd /models
COPY --from=build-cuda /out /
RUN ldconfig
# Sockets, models, and where `latentd pull` puts more of them. VERSION is what /version says. Packed weights are not kept: this
# file system does not outlive the container (docs/starting.md).
ARG VERSION=undefined
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
ENV HOST=0.0.0.0 PORT=8000 MODEL_DIR=/models VERSION=$VERSION LATENTD_PACKED_MIB=0
EXPOSE 8000
VOLUME /models
USER latentd
WORKDIR /var/lib/latentd
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 CMD ["latentd-health"]
ENTRYPOINT ["latentd"]

# ---- cpu ----

FROM debian:${DEBIAN} AS build-cpu
RUN apt-get update && apt-get install -y --no-install-recommends binutils ccache dpkg-dev gcc libc6-dev libcjson-dev \
    libcurl4-openssl-dev libgif-dev libjpeg-dev libmicrohttpd-dev libopenh264-dev libpng-dev libssl-dev libwebp-dev make \
    pkg-config zlib1g-dev
WORKDIR /src
COPY deploy/docker/ffmpeg.sh deploy/docker/
RUN deploy/docker/ffmpeg.sh /opt/ffmpeg
COPY Makefile ./
COPY include include
COPY src src
COPY kernels kernels
COPY models/latentd models/latentd
COPY deploy/docker deploy/docker
ARG COMMIT=unknown
RUN --mount=type=cache,target=/root/.cache/ccache \
    PATH=/usr/lib/ccache:$PATH PKG_CONFIG_PATH=/opt/ffmpeg/lib/pkgconfig LD_LIBRARY_PATH=/opt/ffmpeg/lib \
    make -s -j"$(nproc)" CUDA=0 COMMIT=$COMMIT WERROR=0 PREFIX=/usr DESTDIR=/out install && \
    deploy/docker/stage.sh /out /opt/ffmpeg

FROM debian:${DEBIAN} AS cpu
COPY --from=build-cpu /out/usr/share/latentd/packages /usr/share/latentd/
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates $(cat /usr/share/latentd/packages) && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/* && \
    useradd --uid 10001 --user-group --no-log-init --home-dir /var/lib/latentd --create-home latentd && \
    mkdir /models && chown latentd:latentd /models
COPY --from=build-cpu /out /
RUN ldconfig
# Sockets, models, and where `latentd pull` puts more of them. VERSION is what /version says. Packed weights are not kept: this
# file system does not outlive the container (docs/starting.md).
ARG VERSION=undefined
ENV HOST=0.0.0.0 PORT=8000 MODEL_DIR=/models VERSION=$VERSION LATENTD_PACKED_MIB=0
EXPOSE 8000
VOLUME /models
USER latentd
WORKDIR /var/lib/latentd
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 CMD ["latentd-health"]
ENTRYPOINT ["latentd"]
