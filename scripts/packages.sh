# Sourced by quickstart.sh and test.sh: installs Debian or Ubuntu packages that are missing, as root or through sudo.
# latentd links libmicrohttpd (HTTP), cJSON (JSON), libpng with zlib (PNG), and for pictures that clients send libjpeg-turbo,
# libwebp and giflib. FFmpeg's libraries make the MP4s of image-to-video; without them everything else still builds.
# latentd-pull links libcurl and OpenSSL's libcrypto.
BUILD_PACKAGES="gcc make pkg-config libc6-dev libmicrohttpd-dev libcjson-dev libpng-dev zlib1g-dev libjpeg-dev libwebp-dev libgif-dev \
    libavcodec-dev libavformat-dev libavutil-dev libcurl4-openssl-dev libssl-dev"
# Tests of deploy/ make a Debian root (debootstrap), ask systemd-analyze, and are Python.
DEPLOY_PACKAGES="debootstrap python3 python3-venv systemd"
# The tests also compile the CUDA kernels for the CPU, and ask ffprobe and ffmpeg about videos.
TEST_PACKAGES="$BUILD_PACKAGES $DEPLOY_PACKAGES g++ ffmpeg curl"
# The pages are tested in a browser where the distribution has one as a package (Ubuntu has not); 360 MB installed.
BROWSER_PACKAGE=chromium

have_package() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# install_packages NAME…
install_packages() {
    local missing=() name as_root=
    for name in "$@"; do
        have_package "$name" || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return 0
    if ! command -v apt-get >/dev/null; then
        echo "These packages are missing, and there is no apt-get to install them: ${missing[*]}" >&2
        return 1
    fi
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "Run this as root once, or install: ${missing[*]}" >&2
            return 1
        fi
        as_root=sudo
    fi
    echo "installing ${missing[*]}"
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# install_if_offered NAME: does nothing where the distribution has no such package.
install_if_offered() {
    have_package "$1" && return 0
    if command -v apt-cache >/dev/null && apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [0-9]'; then
        install_packages "$1"
    else
        echo "no package $1 here: what needs it is left out"
    fi
}
