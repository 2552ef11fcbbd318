#!/usr/bin/env bash
# The first command: installs what is missing, builds latentd, starts it with the model that ships with the project, and asks
# it for a picture of "a mountain lion". Leaves the daemon running until Ctrl-C; with --once it stops. With
# PIPELINE=image-to-video the picture becomes the first frame of a video, which the shipped video model makes.
#
#   scripts/quickstart.sh [--once] [PROMPT]      PORT (8000) and OUT (mountain-lion.png, or .mp4) may be set
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

once=0
prompt="a mountain lion"
for arg in "$@"; do
    case $arg in
    --once) once=1 ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) prompt=$arg ;;
    esac
done
port=${PORT:-8000}
kind=${PIPELINE:-text-to-image}
case $kind in
text-to-image) out=${OUT:-mountain-lion.png} model=latentd/emoji ;;
image-to-video) out=${OUT:-mountain-lion.mp4} model=latentd/emoji-video ;;
*) echo "PIPELINE is $kind; a first picture or video is made with text-to-image or image-to-video" >&2; exit 2 ;;
esac
export PIPELINE=$kind MODEL_ID="${MODEL_ID:-$model}"
base=http://127.0.0.1:$port
# Whatever answers there would be taken for the daemon.
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    echo "port $port is in use: end what listens there, or name another one with PORT=" >&2
    exit 1
fi

echo "[1/4] packages"
install_packages $BUILD_PACKAGES curl

echo "[2/4] building (about a minute)"
make -s -j"$(nproc)" WERROR=0 all

daemon=
stop_daemon() {
    if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
}
trap stop_daemon EXIT
trap 'echo; echo "stopping"; exit 0' INT TERM

echo "[3/4] starting the daemon on $base"
env -u AUTH_TOKEN HOST=127.0.0.1 PORT="$port" build/latentd &
daemon=$!
for _ in $(seq 1 600); do
    if ! kill -0 "$daemon" 2>/dev/null; then
        echo "the daemon ended before it was ready; its last lines above say why" >&2
        exit 1
    fi
    [ "$(curl -s -o /dev/null -w '%{http_code}' --max-time 2 "$base/health/ready" || true)" = 200 ] && break
    sleep 0.1
done

ask_for_picture() {
    echo "[4/4] asking for \"$prompt\""
    body=$(printf '%s' "$prompt" | sed 's/\\/\\\\/g; s/"/\\"/g')
    curl -sS --fail-with-body --max-time 900 -o "$out.part" -H 'Content-Type: application/json' -H 'Accept: image/png' \
        -d "{\"prompt\": \"$body\", \"seed\": 1}" "$base/text-to-image" &
}

ask_for_video() {
    first=${out%.mp4}-first.png
    echo "[4/4] drawing \"$prompt\" ($first) and asking for a video of it"
    MODEL_DIR=models build/latentd generate "$prompt" -o "$first" --seed 1 --model_id latentd/emoji >/dev/null
    curl -sS --fail-with-body --max-time 900 -o "$out.part" -H 'Accept: video/mp4' -F "image=@$first" -F motion_bucket_id=255 \
        -F seed=1 "$base/image-to-video" &
}

start=$(date +%s)
if [ "$kind" = image-to-video ]; then ask_for_video; else ask_for_picture; fi
request=$!
while kill -0 "$request" 2>/dev/null; do
    printf '\r      %d s ' $(($(date +%s) - start))
    sleep 0.2
done
printf '\r'
if ! wait "$request"; then
    cat "$out.part" >&2 2>/dev/null || true
    exit 1
fi
mv "$out.part" "$out"
echo "$([ "$kind" = image-to-video ] && echo the video || echo the picture) is in $(cd "$(dirname "$out")" && pwd)/$(basename "$out")"

if [ $once = 1 ]; then
    exit 0
fi
echo "the daemon goes on at $base until Ctrl-C; try:"
if [ "$kind" = image-to-video ]; then
    echo "  curl -H 'Accept: video/mp4' -F image=@${out%.mp4}-first.png -F motion_bucket_id=80 $base/image-to-video -o less.mp4"
else
    echo "  curl -H 'Accept: image/png' -H 'Content-Type: application/json' -d '{\"prompt\": \"a red heart\"}' $base/text-to-image -o heart.png"
fi
echo "  open $base/docs"
wait "$daemon"
