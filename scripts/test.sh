#!/usr/bin/env bash
# The second command: installs what the tests need, builds with warnings as errors, runs every test, then the same suite
# under ASan and UBSan. Ends with the line "N passed, N failed".
#
#   scripts/test.sh [--quick]      --quick leaves the sanitizer round out
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

quick=0
[ "${1:-}" = --quick ] && quick=1
passed=0
failed=0
failures=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# run NAME COMMAND…: one program of tests. Its closing "N passed, N failed" is added up; a program that ends without one, or
# with a status that contradicts it, counts as a failure.
run() {
    local name=$1 status=0 line p f start=$SECONDS
    shift
    "$@" >"$log" 2>&1 || status=$?
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1 || true)
    p=0 f=0
    [ -n "$line" ] && read -r p _ f _ <<<"${line/,/}"
    if [ -z "$line" ] || { [ "$status" != 0 ] && [ "$f" = 0 ]; }; then
        f=$((f + 1))
    fi
    passed=$((passed + p))
    failed=$((failed + f))
    if [ "$f" != 0 ]; then
        failures+=("$name")
        echo "FAIL $name (status $status)"
        grep -v '^ok ' "$log" | tail -n 40
    else
        echo "ok   $name: $p passed, $((SECONDS - start)) s"
    fi
}

# check NAME COMMAND…: one command that must succeed.
check() {
    local name=$1
    shift
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        echo "ok   $name"
    else
        failed=$((failed + 1))
        failures+=("$name")
        echo "FAIL $name"
        tail -n 40 "$log"
    fi
}

# suite BUILD-FOLDER LABEL: every test program of one build.
suite() {
    local build=$1 label=$2 program
    export LATENTD_BIN=$build/latentd
    for program in "$build"/tests/unit/test_* "$build"/tests/golden/test_* "$build"/checkkernels "$build"/tests/api/test_* \
        "$build"/tests/fault/test_*; do
        if [ -x "$program" ] && [ -f "$program" ] && [[ $program != *.[do] ]]; then
            run "$label$(basename "$program")" "$program"
        fi
    done
}

# emulated BUILD-FOLDER LABEL ROUNDS TIERS PROGRAM…: the CUDA backend on an emulated GPU (tests/emulator/emulator.h), every
# op with ROUNDS random shapes, and goldens on TIERS. Of the final pictures one is enough there.
emulated() {
    local build=$1 label=$2 rounds=$3 tiers=$4 program tier
    shift 4
    run "${label}cuda: test_emulator" "$build/emulated/test_emulator"
    run "${label}cuda: test_library" "$build/emulated/test_library"
    run "${label}cuda: checkkernels" "$build/emulated/checkkernels" --isa cuda --rounds "$rounds"
    for program in "$@"; do
        for tier in $tiers; do
            GOLDEN_TIER=$tier GOLDEN_PICTURE=boat run "$label$tier: $program" "$build/emulated/tests/golden/$program"
        done
    done
    for program in sd1_image xl_image pix2pix; do
        GOLDEN_TIER=cuda GOLDEN_PICTURE=$program run "${label}cuda: test_image_to_image $program" \
            "$build/emulated/tests/golden/test_image_to_image" every_family
    done
}

# candidates BUILD-FOLDER: another order of threads, and each way to run a product by itself.
candidates() {
    local build=$1 pair
    EMULATOR_SEED=2 run "cuda: checkkernels, another order" "$build/emulated/checkkernels" --isa cuda --rounds 2 --seed 2
    for pair in 256x128:conv2d 128x128:conv2d 128x64:conv2d 64x64:conv2d cublaslt:linear cublaslt:conv2d cudnn:conv2d cudnn:attention; do
        LD_LIBRARY_PATH=$build/emulated/fake run "cuda: checkkernels, $pair" "$build/emulated/checkkernels" \
            --isa cuda --candidate "${pair%:*}" --rounds 2 --op "${pair#*:}"
    done
}

install_packages $TEST_PACKAGES
check "imports go one way" scripts/check_imports.sh
make -s -j"$(nproc)" WERROR=1 all tests
suite build ""
emulated build "" 4 "cuda cuda+bf16" test_clip_text test_unet test_vae test_model test_picture test_safety test_safety_pipeline
candidates build
if [ $quick = 0 ]; then
    # An optimised sanitizer build: the networks are too slow at -O0.
    make -s -j"$(nproc)" WERROR=1 SAN=1 all tests
    export ASAN_OPTIONS=detect_leaks=1:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
    suite build-san "san: "
    emulated build-san "san: " 1 cuda test_clip_text test_vae
fi
if command -v clang-format >/dev/null && [[ $(clang-format --version) == *"version 14."* ]]; then
    check "formatting" make -s lint
fi

for name in "${failures[@]+"${failures[@]}"}"; do
    echo "failed: $name"
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
