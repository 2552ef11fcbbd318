#!/usr/bin/env bash
# Builds what scripts/gpu_report.sh runs and packs it into one archive, for a machine with a GPU that has not the libraries'
# headers and cannot fetch them: the programs, stripped, and the shared libraries that they need beyond glibc and libstdc++.
# Without FFmpeg, which brings 100 libraries and which nothing there asks for. Run it on a machine whose glibc is not newer
# than the other one's.
#
#   scripts/gpu_prebuild.sh [--programs BUILD] [ARCHIVE=prebuilt.tar.xz]
#
# CUDA_ARCHS names the GPUs (90a, which is Hopper's; "80 90a" for an A100, too), JOBS how many compilers run at a time.
# --programs builds nothing and takes what is in the folder BUILD.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit "$1"
}

build='' archive=
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage 0 ;;
    --programs) build=${2:?--programs wants a folder} && shift ;;
    -*) usage 2 >&2 ;;
    *) archive=$1 ;;
    esac
    shift
done
archive=${archive:-prebuilt.tar.xz}
most=$((16 * 1024 * 1024)) # it travels together with the sources, and is not all that travels

names=(latentd checkkernels)
for source in tests/golden/test_*.c; do
    names+=("${source%.c}")
done
if [ -z "$build" ]; then
    archs=${CUDA_ARCHS:-90a}
    build=build/gpu-${archs// /-} # of its own: objects do not say for which GPUs they are
    make -s -j"${JOBS:-$(nproc)}" BUILD="$build" CUDA=1 FFMPEG=0 CUDA_ARCHS="$archs" "${names[@]/#/$build/}"
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/tests/golden" "$folder/lib"
programs=()
for name in "${names[@]}"; do
    if [ ! -x "$build/$name" ]; then
        echo "$build/$name is missing" >&2
        exit 1
    fi
    programs+=("$build/$name")
    strip -o "$folder/$name" "$build/$name"
done

libraries=$(for program in "${programs[@]}"; do ldd "$program"; done | sort -u)
if grep 'not found' <<<"$libraries" >&2; then
    exit 1
fi
# Those of the C and C++ runtime belong to the other machine: its loader must match them.
awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }' <<<"$libraries" | sort -u | while read -r name path; do
    case $name in
    libc.so.* | libm.so.* | libpthread.so.* | libdl.so.* | librt.so.* | ld-linux* | libstdc++.so.* | libgcc_s.so.*) ;;
    *) cp -L "$path" "$folder/lib/$name" ;;
    esac
done

# Where there is no .git the report asks this file which commit it measured.
if commit=$(git rev-parse HEAD 2>/dev/null); then
    git --no-optional-locks diff --quiet HEAD 2>/dev/null || commit="$commit, with changes"
    echo "$commit" >"$folder/COMMIT"
fi

if [[ $(LATENTD_BACKEND=cuda "$folder/latentd" kernels 2>&1) == *"no CUDA"* ]]; then
    echo "warning: $build/latentd was built without CUDA" >&2
fi
# The programs are nearly the same, and of each but the first little is left by a dictionary larger than one of them.
tar -C "$folder" --owner=0 --group=0 --sort=name -c . | xz -9 >"$archive"
bytes=$(stat -c %s "$archive")
echo "$archive: ${#programs[@]} programs, $(find "$folder/lib" -type f | wc -l) libraries, $((bytes / 1024)) KiB" \
    "($(($(du -sb "$folder" | cut -f 1) / 1024)) unpacked)"
if [ "$bytes" -gt "$most" ]; then
    echo "that is more than $((most / 1024 / 1024)) MiB" >&2
    exit 1
fi
