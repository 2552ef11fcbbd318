#!/bin/sh
# stage.sh OUT FFMPEG: completes the tree OUT that becomes the image: FFmpeg's libraries, the health check, and the list of the
# distribution's packages whose libraries the programs need (their names differ from release to release).
set -eu
out=$1
mkdir -p "$out/usr/local/lib"
cp -a "$2"/lib/*.so.* "$out/usr/local/lib/"
strip --strip-unneeded "$out"/usr/local/lib/*.so.*
install -m 755 "$(dirname "$0")/latentd-health" "$out/usr/bin/"
objdump -p "$out"/usr/bin/latentd* "$out"/usr/local/lib/*.so.* 2>/dev/null | awk '/NEEDED/ {print $2}' | sort -u |
    while read -r name; do
        [ -e "$out/usr/local/lib/$name" ] || dpkg -S "*/$name" | sed -n '1s/:.*//p'
    done | sort -u >"$out/usr/share/latentd/packages"
