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
logs=$(mktemp -d)
log=$logs/log
trap 'rm -rf "$logs"' EXIT

# report NAME STATUS SECONDS: adds up what the program that wrote $log says in its closing "N passed, N failed"; one that
# ended without it, or with a status that contradicts it, counts as a failure.
report() {
    local name=$1 status=$2 line p f
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
        { grep -v '^ok ' "$log" || true; } | tail -n 40
    else
        echo "ok   $name: $p passed, $3 s"
    fi
}

# run NAME COMMAND…: one program of tests.
run() {
    local name=$1 status=0 start=$SECONDS
    shift
    "$@" >"$log" 2>&1 || status=$?
    report "$name" $status $((SECONDS - start))
}

# begin NAME COMMAND…: the same in the background, one for each core; for programs of one thread whose time does not
# matter. finish waits for all of them and reports in the order of their beginning.
begun=()
begin() {
    local name=$1 at=$logs/${#begun[@]}
    shift
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do
        wait -n || true
    done
    begun+=("$name")
    (
        status=0 start=$SECONDS
        "$@" >"$at.log" 2>&1 || status=$?
        echo "$status $((SECONDS - start))" >"$at.status"
    ) &
}

finish() {
    local i status seconds
    wait
    for i in "${!begun[@]}"; do
        read -r status seconds <"$logs/$i.status" || status=1 seconds=0
        cp "$logs/$i.log" "$log"
        report "${begun[$i]}" "$status" "$seconds"
    done
    begun=()
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
        "$build"/tests/fault/test_* "$build"/tests/pull/test_*; do
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
    begin "${label}cuda: checkkernels" "$build/emulated/checkkernels" --isa cuda --rounds "$rounds"
    for program in "$@"; do
        for tier in $tiers; do
            # Of the long one a type is enough: what differs between them is seen by stages.
            [ "$program$tier" = test_picturecuda+bf16 ] && continue
            GOLDEN_TIER=$tier GOLDEN_PICTURE=boat begin "$label$tier: $program" "$build/emulated/tests/golden/$program"
        done
    done
    for program in sd1_image xl_image pix2pix; do
        GOLDEN_TIER=cuda GOLDEN_PICTURE=$program begin "${label}cuda: test_image_to_image $program" \
            "$build/emulated/tests/golden/test_image_to_image" every_family
    done
    GOLDEN_TIER=cuda GOLDEN_PICTURE=heun begin "${label}cuda: test_image_to_image deepcache" \
        "$build/emulated/tests/golden/test_image_to_image" deepcache_gives
    for tier in $tiers; do
        GOLDEN_TIER=$tier GOLDEN_PICTURE=one_step begin "${label}$tier: test_upscale" \
            "$build/emulated/tests/golden/test_upscale" pictures_of noised
    done
    begin "${label}cuda: test_emulator" "$build/emulated/test_emulator"
    begin "${label}cuda: test_library" "$build/emulated/test_library"
    begin "${label}cuda: test_trial" "$build/emulated/test_trial"
}

# candidates BUILD-FOLDER: another order of threads, and each way to run a product by itself.
candidates() {
    local build=$1 pair
    EMULATOR_SEED=2 begin "cuda: checkkernels, another order" "$build/emulated/checkkernels" --isa cuda --rounds 2 --seed 2
    for pair in cudnn:attention cudnn:conv2d 256x128:conv2d 128x128:conv2d 128x64:conv2d 64x64:conv2d cublaslt:linear \
        cublaslt:conv2d wgmma128x256/1:linear wgmma128x256:conv2d wgmma128x128/1:conv2d tma128x256/1:linear \
        tma128x128:linear tma128x256:conv2d tma128x128/1:conv2d tma128x128:conv_temporal; do
        LD_LIBRARY_PATH=$build/emulated/fake begin "cuda: checkkernels, $pair" "$build/emulated/checkkernels" \
            --isa cuda --candidate "${pair%:*}" --rounds 1 --op "${pair#*:}"
    done
}

install_packages $TEST_PACKAGES
install_if_offered $BROWSER_PACKAGE
check "imports go one way" scripts/check_imports.sh
make -s -j"$(nproc)" WERROR=1 all tests
suite build ""
run "pages in a browser" python3 tests/page/test_page.py
run "a client by the contract" python3 tests/clients/test_clients.py
run "commands of README.md and docs/running.md" python3 tests/readme/test_readme.py
emulated build "" 4 "cuda cuda+bf16" test_picture test_unet test_clip_text test_vae test_model test_lora test_safety test_safety_pipeline
candidates build
finish
for program in tests/deploy/test_*.py; do
    run "$(basename "$program" .py)" "$program"
done
if [ $quick = 0 ]; then
    # An optimised sanitizer build: the networks are too slow at -O0.
    make -s -j"$(nproc)" WERROR=1 SAN=1 all tests
    export ASAN_OPTIONS=detect_leaks=1:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
    suite build-san "san: "
    emulated build-san "san: " 1 cuda test_clip_text test_vae
    finish
fi
if command -v clang-format >/dev/null && [[ $(clang-format --version) == *"version 14."* ]]; then
    check "formatting" make -s lint
fi

for name in "${failures[@]+"${failures[@]}"}"; do
    echo "failed: $name"
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
