#!/bin/sh
# ffmpeg.sh FOLDER [--nvenc]: builds FFmpeg's libraries from the distribution's own source package, its security patches
# included, with nothing in them but what latentd calls: an H.264 encoder and the writer of MP4s. 1.4 MB, where the packaged
# libavcodec brings a hundred libraries and 217 MB. No decoder and no demuxer: nothing here reads what clients send.
# LGPL, with libopenh264 (BSD) as the encoder; --nvenc: the one of NVIDIA cards, too.
set -eu
prefix=$1
nvenc="${2:+--enable-ffnvcodec --enable-nvenc --enable-encoder=h264_nvenc}"
work=$(mktemp -d)
cd "$work"
chmod 755 .
sed -i 's/^Types: deb$/Types: deb deb-src/' /etc/apt/sources.list.d/*.sources
apt-get update
apt-get source --only-source ffmpeg
cd ffmpeg-*/
# shellcheck disable=SC2086
./configure --prefix="$prefix" --disable-everything --disable-autodetect --disable-programs --disable-doc --disable-network \
    --disable-avdevice --disable-avfilter --disable-postproc --disable-swresample --disable-swscale --disable-x86asm \
    --disable-static --enable-shared --disable-debug --enable-libopenh264 --enable-encoder=libopenh264 --enable-muxer=mp4 $nvenc
make -s -j"$(nproc)"
make -s install
cd /
rm -rf "$work"
