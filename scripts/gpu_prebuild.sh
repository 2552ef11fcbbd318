#!/usr/bin/env bash
# Packs what scripts/gpu_report.sh runs into one folder, for a machine with a GPU that has not the libraries' headers and
# cannot fetch them: the programs of BUILD, stripped, and the shared libraries that they need beyond glibc and libstdc++.
# Run it after `make CUDA=1 tests`, on a machine whose glibc is not newer than the other one's.
#
#   scripts/gpu_prebuild.sh [BUILD=build] [FOLDER=prebuilt]
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
-h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
build=${1:-build}
folder=${2:-prebuilt}
most=$((40 * 1024 * 1024)) # it travels together with the sources, and is not all that travels

programs=("$build/latentd" "$build/checkkernels")
for program in "$build"/tests/golden/test_*; do
    if [[ -f $program && -x $program && $program != *.[do] ]]; then
        programs+=("$program")
    fi
done
for program in "${programs[@]}"; do
    if [ ! -x "$program" ]; then
        echo "$program is missing: make CUDA=1 tests" >&2
        exit 1
    fi
done
# Not an error: a change that touches no program is no reason to build again.
newer=$(find src kernels include tests/kernels tests/golden -newer "$build/latentd" \( -name '*.[ch]' -o -name '*.cu*' \) |
    head -n 3 | tr '\n' ' ')
if [ -n "$newer" ]; then
    echo "warning: newer than $build/latentd: $newer" >&2
fi

# Old programs that the build no longer has must not travel; anything else in the way is left alone and stops us.
if [ -e "$folder" ] && [ ! -e "$folder/latentd" ] && [ -n "$(ls -A "$folder")" ]; then
    echo "$folder is there and holds something else" >&2
    exit 1
fi
rm -rf "$folder"
mkdir -p "$folder/tests/golden" "$folder/lib"

for program in "${programs[@]}"; do
    to=$folder/${program#"$build"/}
    cp "$program" "$to"
    strip -g "$to"
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
bytes=$(du -sb "$folder" | cut -f 1)
echo "$folder: ${#programs[@]} programs, $(find "$folder/lib" -type f | wc -l) libraries, $((bytes / 1024)) KiB"
if [ "$bytes" -gt "$most" ]; then
    echo "that is more than $((most / 1024 / 1024)) MiB" >&2
    exit 1
fi
