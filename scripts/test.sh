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

# One that hangs is ended, and fails with status 124.
ended="timeout -k 10 900"

# run NAME COMMAND…: one program of tests, now. For those that talk to a daemon and have time limits in them.
run() {
    local name=$1 status=0 start=$SECONDS
    shift
    $ended "$@" >"$log" 2>&1 || status=$?
    report "$name" $status $((SECONDS - start))
}

# later NAME COMMAND…: the same behind what runs now, one for each core and nice; for programs whose time does not matter.
# begin starts those that were named so far, the longest had better be the first; finish waits and reports in their order.
names=()
commands=()
later() {
    names+=("$1")
    shift
    commands+=("$(printf '%q ' "$@")")
}

pool() {
    local i
    for i in "${!names[@]}"; do
        while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do
            wait -n || true
        done
        (
            status=0 start=$SECONDS
            eval "nice -n 19 $ended ${commands[$i]}" >"$logs/$i.log" 2>&1 || status=$?
            echo "$status $((SECONDS - start))" >"$logs/$i.status"
        ) &
    done
    wait
}

begin() {
    rm -f "$logs"/*.status
    pool &
}

finish() {
    local i status seconds
    wait
    for i in "${!names[@]}"; do
        read -r status seconds <"$logs/$i.status" || status=1 seconds=0
        cp "$logs/$i.log" "$log" 2>/dev/null || : >"$log"
        report "${names[$i]}" "$status" "$seconds"
    done
    names=()
    commands=()
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

# programs BUILD-FOLDER LABEL FOLDER HOW: every test program of one folder of tests, HOW: run or later.
programs() {
    local program
    for program in "$1/tests/$3"/test_*; do
        if [ -x "$program" ] && [ -f "$program" ] && [[ $program != *.[do] ]]; then
            "$4" "$2$(basename "$program")" "$program"
        fi
    done
}

# quiet BUILD-FOLDER LABEL: what needs no daemon, on the CPU. Of the ops the long ones apart.
quiet() {
    local build=$1 label=$2 part
    for part in "--op conv2d" "--op attention" "--op linear" "--but conv2d,attention,linear"; do
        later "${label}checkkernels $part" "$build/checkkernels" $part
    done
    for part in golden unit fault; do
        programs "$build" "$label" $part later
    done
}

# daemon BUILD-FOLDER LABEL: what starts one, now.
daemon() {
    programs "$1" "$2" api run
    programs "$1" "$2" pull run
}

# emulated BUILD-FOLDER LABEL ROUNDS TIERS PROGRAM…: the CUDA backend on an emulated GPU (tests/emulator/emulator.h), every
# op with ROUNDS random shapes, and goldens on TIERS. Of the final pictures one is enough there.
emulated() {
    local build=$1/emulated label=$2 rounds=$3 tiers=$4 program tier part
    local golden=$build/tests/golden
    shift 4
    for part in "--op conv2d" "--op attention" "--but conv2d,attention"; do
        later "${label}cuda: checkkernels $part" "$build/checkkernels" --isa cuda --rounds "$rounds" $part
    done
    for program in "$@"; do
        for tier in $tiers; do
            # Of the long one a type is enough: what differs between them is seen by stages.
            [ "$program$tier" = test_picturecuda+bf16 ] && continue
            later "$label$tier: $program" env GOLDEN_TIER="$tier" GOLDEN_PICTURE=boat "$golden/$program"
        done
    done
    for program in sd1_image xl_image pix2pix; do
        later "${label}cuda: test_image_to_image $program" env GOLDEN_TIER=cuda GOLDEN_PICTURE=$program \
            "$golden/test_image_to_image" every_family
    done
    later "${label}cuda: test_image_to_image deepcache" env GOLDEN_TIER=cuda GOLDEN_PICTURE=heun \
        "$golden/test_image_to_image" deepcache_gives
    for tier in $tiers; do
        later "${label}$tier: test_upscale" env GOLDEN_TIER="$tier" GOLDEN_PICTURE=one_step \
            "$golden/test_upscale" pictures_of noised
    done
    for program in test_emulator test_library test_step test_trial; do
        later "${label}cuda: $program" "$build/$program"
    done
}

# candidates BUILD-FOLDER: another order of threads, and each way to run a product by itself.
candidates() {
    local build=$1/emulated pair
    later "cuda: checkkernels, another order" env EMULATOR_SEED=2 "$build/checkkernels" --isa cuda --rounds 2 --seed 2
    for pair in cudnn:attention cudnn:conv2d 256x128:conv2d 128x128:conv2d 128x64:conv2d 64x64:conv2d cublaslt:linear \
        cublaslt:conv2d wgmma128x256/1:linear wgmma128x256:conv2d wgmma128x128/1:conv2d tma128x256/1:linear \
        tma128x128:linear tma128x256:conv2d tma128x128/1:conv2d tma128x128:conv_temporal; do
        later "cuda: checkkernels, $pair" env LD_LIBRARY_PATH="$build/fake" "$build/checkkernels" \
            --isa cuda --candidate "${pair%:*}" --rounds 1 --op "${pair#*:}"
    done
}

install_packages $TEST_PACKAGES
install_if_offered $BROWSER_PACKAGE
check "imports go one way" scripts/check_imports.sh
make -s -j"$(nproc)" WERROR=1 all tests
emulated build "" 4 "cuda cuda+bf16" test_picture test_unet test_clip_text test_vae test_model test_lora test_safety test_safety_pipeline
candidates build
quiet build ""
export LATENTD_BIN=build/latentd
begin
daemon build ""
run "pages in a browser" python3 tests/page/test_page.py
run "a client by the contract" python3 tests/clients/test_clients.py
run "commands of README.md and docs/running.md" python3 tests/readme/test_readme.py
for program in tests/deploy/test_*.py; do
    run "$(basename "$program" .py)" "$program"
done
finish
if [ $quick = 0 ]; then
    # An optimised sanitizer build: the networks are too slow at -O0.
    make -s -j"$(nproc)" WERROR=1 SAN=1 all tests
    # Sizes that prove nothing new about memory are left out.
    export ASAN_OPTIONS=detect_leaks=1:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 TEST_SHORT=1
    emulated build-san "san: " 1 cuda test_clip_text test_vae
    quiet build-san "san: "
    export LATENTD_BIN=build-san/latentd
    begin
    daemon build-san "san: "
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
