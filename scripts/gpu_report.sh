#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU: is the CUDA backend right, and how fast is it beside PyTorch on the same GPU?
# Nothing is installed or fetched, and no setting of the GPU is changed. docs/gpu.md says what each part shows.
#
#   scripts/gpu_report.sh OUT [--quick] [--only PART] ... [--seconds N]
#
# Parts, in this order: machine build kernels goldens bytes times torch sanitizers. Each has a limit of its own, and none
# stops the others; --seconds limits them all together. OUT gets log.txt, report.md and a few files of figures; report.md is
# printed last. LATENTD_PREBUILT names what scripts/gpu_prebuild.sh made (the archive, or a folder with its contents), instead
# of building.
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")/.."
self=scripts/gpu_report.sh
all_parts="machine build kernels goldens bytes times torch sanitizers"

# ---- Helpers of the parts, which run in processes of their own: `timeout` can end a process, not a function ----

# What the table says about this part; several notes are joined.
note() { echo "$*" >>"$WORK/note.$PART"; }
quick() { [ "$QUICK" = 1 ]; }
now() { date +%s; }
# The part as a whole: checked so far, not to the end. See `outcome`.
INCOMPLETE=3

# prog NAME ARGUMENT…: one of our programs. Only it gets the carried libraries; python's and nvidia's tools have their own.
# LIBS: see library_path.
prog() {
    local name=$1
    shift
    env -u PIPELINE -u MODEL_ID ${LIBS:+LD_LIBRARY_PATH="$LIBS"} "$BIN/$name" "$@"
}

# figure NAME VALUE: for the table.
figure() { printf '%s\t%s\n' "$1" "$2" >>"$OUT/figures.tsv"; }

# Notes that trials of kernels left in LATENTD_CACHE, because they went wrong or were cut off, go into the table and away, with
# what was timed since: who comes next would leave Hopper's kernels out without a word.
trials_left() {
    local file said
    for file in "$LATENTD_CACHE"/*.trial; do
        [ -e "$file" ] || continue
        said="a trial of Hopper's kernels went wrong or was cut off: $(basename "$file")"
        grep -qxF "$said" "$WORK/note.$PART" 2>/dev/null || note "$said"
        rm -f "$file" "${file%.trial}"
    done
}

# What gpu_prebuild.sh made, as a folder; nothing where there is none.
prebuilt() {
    local from=${LATENTD_PREBUILT:-prebuilt.tar.xz} to=$WORK/prebuilt
    if [ -d "$from" ]; then
        echo "$from"
    elif [ -f "$from" ]; then
        [ -d "$to" ] || { python3 -m tarfile -e "$from" "$to.part" >&2 && mv "$to.part" "$to"; } || return 1
        echo "$to"
    fi
}

# library_path FOLDER…: those that exist, then what the machine says itself (some have the driver's libraries there), then
# cuDNN and cuBLASLt of PyTorch's packages, which may be the only ones.
library_path() {
    local folder path=
    for folder in "$@"; do
        [ ! -d "$folder" ] || path=$path:$(cd "$folder" && pwd)
    done
    path=$path:${LD_LIBRARY_PATH:-}:$(python3 - <<'PY'
import glob, importlib.util
nvidia = importlib.util.find_spec("nvidia")
print(":".join(sorted(x for p in (nvidia.submodule_search_locations if nvidia else []) for x in glob.glob(p + "/*/lib"))))
PY
    ) || true
    sed 's/::*/:/g; s/^://; s/:$//' <<<"$path" # an empty one would be the folder we are in
}

# The ops that checkkernels checks, from its own list.
op_names() { sed -n 's/^ *&check_\([a-z0-9_]*\),.*/\1/p' tests/kernels/main.c; }

# ---- Parts ----

part_machine() {
    local commit
    commit=$(git rev-parse HEAD 2>/dev/null || cat COMMIT 2>/dev/null || cat "$(prebuilt)/COMMIT" 2>/dev/null || echo unknown)
    note "commit $commit"
    date -u
    uname -a
    lscpu | grep -E '^(Model name|CPU\(s\)|L3)' || true
    free -g || true
    df -h /dev/shm "${TMPDIR:-/tmp}" || true
    { nvcc --version || /usr/local/cuda/bin/nvcc --version; } 2>/dev/null | tail -n 2 || echo "no nvcc"
    python3 -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda, torch.backends.cudnn.version())' ||
        echo "no torch"
    command -v nvidia-smi || { note "there is no nvidia-smi"; return 1; }
    nvidia-smi # reads, as every call of it here: the settings of a GPU are its owner's
    local clocks=pstate,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu
    nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used,compute_mode,ecc.mode.current,$clocks --format=csv
    note "$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | head -n 1)"
}

# Which programs: those given, those built here, those carried along. The later parts find the answer in files.
part_build() {
    local folder='' served
    if [ -z "${LATENTD_PREBUILT:-}" ] && pkg-config --exists libmicrohttpd libcjson libpng libjpeg libwebp 2>/dev/null; then
        make -j"$(nproc)" CUDA=1 tests
        folder=build
        note "built here"
    elif folder=$(prebuilt) && [ -n "$folder" ]; then
        note "programs made before, of commit $(cat "$folder/COMMIT" 2>/dev/null || echo unknown)"
    else
        note "no libraries to build with, and no programs made before in ${LATENTD_PREBUILT:-prebuilt.tar.xz}"
        return 1
    fi
    (cd "$folder" && pwd) >"$WORK/bin"
    library_path "$folder/lib" >"$WORK/libs"
    BIN=$(cat "$WORK/bin") LIBS=$(cat "$WORK/libs")
    if ! prog latentd --version; then
        note "its latentd does not start"
        return 1
    fi
    if ! LATENTD_BACKEND=cuda prog latentd kernels 2>&1 | tee "$WORK/kernels"; then
        note "$(tail -n 1 "$WORK/kernels")"
        return 1
    fi
    served=$(op_names | while read -r op; do
        awk -v op="$op" '$1 == op && $2 != "ref" && $2 != "nobody"' "$WORK/kernels"
    done | wc -l)
    note "$served of $(op_names | wc -l) ops have a CUDA kernel"
}

part_kernels() {
    local status=0
    prog checkkernels --isa cuda --rounds "$(quick && echo 2 || echo 8)" | tee "$WORK/checked" || status=$?
    note "$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$WORK/checked" || echo "ended before its last line")"
    awk '$1 == "FAIL" { print "fails: " $2 " on " $3 }' "$WORK/checked" >>"$WORK/note.$PART"
    note "$(grep -o '[0-9]* pairs of op and tier left to ref' "$WORK/checked" || true)"
    grep -qE '^[1-9][0-9]* passed, 0 failed' "$WORK/checked" && [ $status = 0 ] && each_candidate
}

# Kernels of our own that compete at an op, by name. The first are Hopper's.
candidates="tma128x256/1:linear tma128x128/1:linear tma128x256:conv2d tma128x128:conv2d tma128x128:conv_temporal
    wgmma128x256/1:linear wgmma128x128/1:linear wgmma128x256:conv2d wgmma128x128:conv2d 256x128:conv2d 128x128:conv2d
    128x64:conv2d 64x64:conv2d"

# The run above takes the fastest for each shape; here each of the others serves, wherever it can.
each_candidate() {
    local pair name op bad=0 checked=$WORK/candidate
    for pair in $candidates flash:attention cudnn:attention cudnn:conv2d cublaslt:linear; do
        name=${pair%:*} op=${pair#*:}
        prog checkkernels --isa cuda --rounds 1 --op "$op" --candidate "$name" >"$checked" 2>&1 || true
        grep -v '^ok' "$checked" || true
        if grep -q 'served nothing' "$checked"; then
            note "$name has no $op here"
        elif ! grep -qE '^[1-9][0-9]* passed, 0 failed' "$checked"; then
            note "$name fails in $op"
            bad=1
        fi
    done
    return $bad
}

# left MOST: seconds for one process of this part. It must end before the part does: a `timeout` within a `timeout` is in a
# process group of its own, so ending the part would leave it behind.
left() {
    local seconds=$((PART_END - $(now)))
    echo $((seconds < 1 ? 1 : seconds < $1 ? seconds : $1))
}

# A golden test skips a tier that the machine lacks and passes: only a line of numbers from that tier counts.
golden() {
    local tier=$1 program=$2 log=$WORK/golden.log status=0
    GOLDEN_TIER=$tier timeout -k 2 "$(left 120)" env ${LIBS:+LD_LIBRARY_PATH="$LIBS"} "$program" >"$log" 2>&1 || status=$?
    cat "$log"
    trials_left
    [ $status = 0 ] && ! grep -q 'not on this machine' "$log" && grep -F "  $tier " "$log" | grep -qE 'relative L2| dB'
}

part_goldens() {
    local tier program good total bad=0 failed worst
    for tier in cuda cuda+bf16; do
        good=0 total=0 failed=
        for program in "$BIN"/tests/golden/test_*; do
            if [[ ! -f $program || ! -x $program || $program == *.[do] ]]; then
                continue
            fi
            total=$((total + 1))
            echo "-- $tier $(basename "$program")"
            if golden $tier "$program"; then
                good=$((good + 1))
                awk -v tier=$tier '$1 == tier && / allowed / { print ($NF > 0 ? $(NF - 2) / $NF : 0) }' \
                    "$WORK/golden.log" >>"$WORK/share.$tier"
            else
                failed="$failed $(basename "$program")"
            fi
        done
        [ $total -gt 0 ] && [ $good = $total ] || bad=1
        worst=$(sort -g "$WORK/share.$tier" 2>/dev/null | tail -n 1 | grep . || echo -)
        note "$tier: $good of $total programs${failed:+ (not:$failed)}, worst distance $worst of its limit"
    done
    return $bad
}

# Processes, not requests to one: each starts its own CUDA context, and none inherits anything from the last.
part_bytes() {
    local count i sum first='' file=$WORK/bytes.png started
    count=$(quick && echo 20 || echo 100)
    started=$(now)
    for i in $(seq 1 "$count"); do
        if [ "$(now)" -ge "$PART_END" ]; then
            note "$((i - 1)) of $count, all equal; the time is up"
            return $INCOMPLETE
        fi
        rm -f "$file"
        if ! MODEL_DIR=models LATENTD_BACKEND=cuda prog latentd generate "a mountain lion" -o "$file" --seed 7 \
            --model_id latentd/emoji >"$WORK/bytes.log" 2>&1; then
            cat "$WORK/bytes.log"
            note "run $i failed: $(tail -n 1 "$WORK/bytes.log")"
            return 1
        fi
        sum=$(md5sum <"$file")
        if [ "$sum" != "${first:=$sum}" ]; then
            note "run $i of $count gave other bytes than run 1"
            return 1
        fi
    done
    cat "$WORK/bytes.log"
    note "$count processes, the same bytes (${first%% *}), $(($(now) - started)) s"
}

# gpu_memory: MiB in use on the GPU; nothing where nobody tells.
gpu_memory() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2>/dev/null | head -n 1; }

# bench NAME MODEL RUNS ARGUMENT…: the first process fills the page cache and says how many UNet calls there are; the second
# counts.
bench() {
    local name=$1 model=$2 runs=$3 before sampler='' status=0
    shift 3
    export MODEL_DIR=$MODELS LATENTD_BACKEND=cuda
    prog latentd bench --model_id "$model" --runs 1 "$@" | tee "$WORK/bench" || return 1
    figure "$name.first_load_seconds" "$(sed -n 's/^pipeline load time: \([0-9.]*\)s.*/\1/p' "$WORK/bench")"
    figure "$name.calls" "$(sed -n 's/.* \([0-9]*\) UNet calls.*/\1/p' "$WORK/bench")"
    before=$(gpu_memory || true)
    if [ -n "$before" ]; then
        nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 20 >"$WORK/memory" 2>/dev/null &
        sampler=$!
    fi
    prog latentd bench --model_id "$model" --runs "$runs" "$@" --json >"$WORK/json" || status=1
    if [ -n "$sampler" ]; then
        kill "$sampler" 2>/dev/null || true
        wait "$sampler" 2>/dev/null || true
        [ ! -s "$WORK/memory" ] || figure "$name.gpu_mib" "$(($(sort -n "$WORK/memory" | tail -n 1) - before))"
    fi
    cat "$WORK/json"
    [ $status = 0 ] && cp "$WORK/json" "$OUT/bench-$name.json"
}

part_times() {
    local bad=0 runs started
    if [ ! -e "$MODELS/made" ]; then
        started=$(now)
        if python3 scripts/make_random_model.py "$MODELS" sd-turbo sd15 --vocab none; then
            touch "$MODELS/made"
            note "models made in $(($(now) - started)) s"
        else
            note "the models could not be made"
            bad=1
        fi
    fi
    runs=$(quick && echo 20 || echo 100)
    if ! bench sd-turbo stabilityai/sd-turbo "$runs" --num_inference_steps 1 --guidance_scale 0 --width 512 --height 512; then
        note "SD-Turbo failed"
        bad=1
    fi
    if ! bench sd15 runwayml/stable-diffusion-v1-5 $((runs / 4)) --num_inference_steps 20 --guidance_scale 7.5 --width 512 \
        --height 512; then
        note "SD 1.5 failed"
        bad=1
    fi
    if ! prog checkkernels --bench --isa cuda >"$OUT/kernels-bench.txt"; then
        note "checkkernels --bench failed"
        bad=1
    fi
    note "$(wc -l <"$OUT/kernels-bench.txt") op times in kernels-bench.txt"
    return $bad
}

# Its figures are written one by one, so being cut off costs only the compiling that was under way.
part_torch() {
    local models=() status=0
    if [ -e "$MODELS/made" ]; then
        models=(--models "$MODELS")
    fi
    # a second report on the same machine finds what the first one compiled
    export TORCHINDUCTOR_CACHE_DIR=${TMPDIR:-/tmp}/latentd-inductor TRITON_CACHE_DIR=${TMPDIR:-/tmp}/latentd-triton
    export PYTHONUNBUFFERED=1
    timeout -k 2 "$(left 9999)" python3 scripts/torch_twin.py --time "$OUT/torch.json" ${models[@]+"${models[@]}"} \
        --seconds "$(left 9999)" --each "$(quick && echo 2 || echo 5)" 2>&1 | tee "$WORK/torch" || status=$?
    note "$(grep -c ' ms, median of ' "$WORK/torch" || true) figures"
    if [ $status = 124 ] || [ $status = 137 ] || { [ $status = 0 ] && grep -q 'no time left' "$WORK/torch"; }; then
        note "the time was up before the rest"
        return $INCOMPLETE
    fi
    [ $status = 0 ] || note "$(tail -n 1 "$WORK/torch")"
    return $status
}

# sanitize TOOL OP or TOOL CANDIDATE:OP: one process under one tool; adds a line "TOOL WHICH WORD" to $WORK/sanitized. Nothing
# is timed: that would run every kernel many times, processes would keep each other from trials, and of shapes that are known
# only the winner would run. A candidate that is named runs at every shape that it can.
sanitize() {
    local tool=$1 op=$2 status=0 word log named=()
    log=$WORK/sanitize.$tool.${op//\//-}
    [[ $op != *:* ]] || named=(--candidate "${op%:*}")
    if [ "$(left "$OP_LIMIT")" -lt 3 ]; then
        echo "$tool $op unstarted" >>"$WORK/sanitized"
        return
    fi
    timeout -k 2 "$(left "$OP_LIMIT")" env LATENTD_TUNE=0 ${LIBS:+LD_LIBRARY_PATH="$LIBS"} "$SANITIZER" --tool "$tool" \
        --error-exitcode 9 --print-limit 20 "$BIN/checkkernels" --isa cuda --rounds 1 --op "${op#*:}" \
        ${named[@]+"${named[@]}"} >"$log" 2>&1 || status=$?
    # The tool's own summary and at least one checked case, or it proves nothing.
    if [ $status = 124 ] || [ $status = 137 ]; then
        word="unfinished"
    elif [ $status = 0 ] && grep -q '^0 passed, 0 failed' "$log"; then
        word="left-to-ref"
    elif [[ $op == *:* ]] && grep -q 'served nothing' "$log" &&
        grep -qE 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$log"; then
        word="not-here"
    elif [ $status = 0 ] && grep -qE 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$log" &&
        grep -qE '^[1-9][0-9]* passed, 0 failed' "$log"; then
        word="clean"
    else
        word="errors"
    fi
    echo "$tool $op $word" >>"$WORK/sanitized"
    printf -- '-- %s %s: %s\n' "$tool" "$op" "$word"
    [ $word = clean ] || head -c 20000 "$log"
}

part_sanitizers() {
    local tool op word line bad=0 short=0 clean=0
    SANITIZER=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) || {
        note "there is no compute-sanitizer"
        return 1
    }
    OP_LIMIT=$(quick && echo 30 || echo 90)
    export SANITIZER OP_LIMIT
    # The slowest last, kernels that no GPU has run first. A few side by side: most of a run is start-up and work of the CPU.
    for tool in memcheck initcheck synccheck racecheck; do
        { xargs -n 1 <<<"$candidates" && op_names; } | xargs -P "$(($(nproc) > 4 ? 4 : $(nproc)))" -I{} bash $self --sanitize $tool {}
    done
    for tool in memcheck initcheck synccheck racecheck; do
        line=$tool:
        for word in clean errors left-to-ref not-here unfinished unstarted; do
            op=$(awk -v tool=$tool -v word=$word '$1 == tool && $3 == word { print $2 }' "$WORK/sanitized" | xargs)
            [ -n "$op" ] || continue
            case $word in
            clean) clean=1 line="$line $(wc -w <<<"$op") runs clean" ;;
            errors) bad=1 line="$line, errors in $op" ;;
            left-to-ref) line="$line, left to ref $op" ;;
            not-here) line="$line, not on this GPU $op" ;;
            *) short=1 line="$line, $word $op" ;;
            esac
        done
        note "${line/:,/:}"
    done
    if [ $bad = 1 ] || [ $clean = 0 ]; then
        return 1
    fi
    [ $short = 0 ] || return $INCOMPLETE
}

# ---- The table ----

write_report() {
    python3 - "$OUT" <<'PY'
import json, os, sys

out = sys.argv[1]

def lines(name):
    path = f"{out}/{name}"
    return [x.rstrip("\n").split("\t") for x in open(path, encoding="utf-8")] if os.path.exists(path) else []

def data(name):
    try:
        return json.load(open(f"{out}/{name}", encoding="utf-8"))
    except (OSError, ValueError):
        return {}

# TFLOP, and the least milliseconds on an H200: compute alone at 790 TFLOP/s, and op by op the larger of that and its bytes at
# 4.3 TB/s (both rates measured on one such GPU). Source: the project's performance notes, sections 4a and 4c, which
# count a multiply-add as two and attention's products too.
FLOORS = {
    ("sd-turbo", "text"): (0.045, 0.06, 0.18),
    ("sd-turbo", "unet"): (0.804, 1.02, 1.16),
    ("sd-turbo", "decode"): (2.515, 3.18, 3.23),
    ("sd-turbo", "whole"): (3.364, 4.26, 4.57),
    ("sd15", "text"): (0.026, 0.03, 0.065),  # two prompts; the weights are read once
    ("sd15", "unet"): (1.606, 2.035, 2.15),  # a batch of two: 40.7 / 20, and what 46.3 leaves for each of 20 calls
    ("sd15", "decode"): (2.515, 3.18, 3.23),
    ("sd15", "whole"): (34.67, 43.9, 46.3),  # 20 calls; PNDM makes 21 for 20 steps
}
REQUESTS = {"sd-turbo": "SD-Turbo, 512x512, 1 step", "sd15": "SD 1.5, 512x512, 20 steps with guidance"}
PARTS = {"text": "text encoder", "unet": "one UNet call", "decode": "VAE decoder", "whole": "**whole request**"}
figures = {x[0]: x[1] for x in lines("figures.tsv") if len(x) == 2 and x[1]}
torch = data("torch.json")

def show(x, digits=2):
    return "-" if x is None else f"{x:.{digits}f}"

def ours(name, part):
    """Milliseconds; of a part: in the run with the median time."""
    b = data(f"bench-{name}.json")
    if not b:
        return None
    if part == "whole":
        return 1e3 * b["median_seconds"]
    run = b["runs"][len(b["runs"]) // 2]
    if part == "unet":
        calls = int(figures.get(f"{name}.calls", 0))
        return 1e3 * run["steps"] / calls if calls else None
    return 1e3 * run[part]

def theirs(name, variant, part):
    return torch.get("figures", {}).get(name, {}).get(variant, {}).get(part, {}).get("ms")

def gib(n):
    return None if n is None else n / 2**30

r = ["# latentd on a GPU", "", "| part | result | seconds | |", "| --- | --- | --- | --- |"]
r += ["| " + " | ".join((x + [""] * 4)[:4]) + " |" for x in lines("parts.tsv")]
r += ["", "Milliseconds. The floor is of an H200; share: the floor over latentd's time; the last column: the best of PyTorch's three "
      "over latentd.", "",
      "| request | part | TFLOP | floor: compute / roofline | latentd | TFLOP/s | share of the roofline | PyTorch eager | "
      "eager in a CUDA graph | compile, max-autotune | PyTorch's best / latentd |", "| --- " * 11 + "|"]
for name, request in REQUESTS.items():
    for part, label in PARTS.items():
        tflop, compute, roofline = FLOORS[name, part]
        if part == "whole":
            tflop = data(f"bench-{name}.json").get("flop", tflop * 1e12) / 1e12  # what was really asked, by latentd's own count
        t, other = ours(name, part), [theirs(name, v, part) for v in ("eager", "graph", "compile")]
        best = min((x for x in other if x), default=None)
        r.append(f"| {request} | {label} | {tflop:.3f} | {compute} / {roofline} | {show(t)} | "
                 f"{show(tflop / t * 1e3 if t else None, 0)} | {show(100 * roofline / t if t else None, 0)}{' %' if t else ''} | "
                 f"{show(other[0])} | {show(other[1])} | {show(other[2])} | {show(best / t if best and t else None)} |")
r += ["", f"UNet calls of latentd: SD-Turbo {figures.get('sd-turbo.calls', '-')}, SD 1.5 {figures.get('sd15.calls', '-')}. "
      "SD 1.5's floor counts 20; PNDM makes 21 for 20 steps, 5 % more.", "",
      "| request | GPU memory, GiB: latentd | PyTorch eager | load from the page cache, s: latentd | its first load | PyTorch |",
      "| --- " * 6 + "|"]
for name, request in REQUESTS.items():
    eager = torch.get("figures", {}).get(name, {}).get("eager", {})
    mib, first = figures.get(f"{name}.gpu_mib"), figures.get(f"{name}.first_load_seconds")
    r.append(f"| {request} | {show(float(mib) / 1024 if mib else None)} | {show(gib(eager.get('device_used_bytes')))} | "
             f"{show(data(f'bench-{name}.json').get('load_seconds'))} | {show(float(first) if first else None)} | "
             f"{show(eager.get('load_seconds'))} |")
r += ["", f"PyTorch: {torch.get('torch', '-')} on {torch.get('device', '-')}, {torch.get('dtype', '-')}, channels_last, SDPA. "
      f"Ceilings measured in the same run: matrix product {show(torch.get('matmul_tflops'), 0)} TFLOP/s, copy "
      f"{show(torch.get('copy_tbps'))} TB/s.",
      "A dash: not measured. Memory: what the GPU had in use at most, CUDA's own context included."]
bad = [f"{n} {v} {p}: {o['error']}" for n, by in torch.get("figures", {}).items() for v, f in by.items()
       for p, o in f.items() if isinstance(o, dict) and "error" in o]
r += ["", *(f"PyTorch failed at {x}" for x in bad)] if bad else []
open(f"{out}/report.md", "w", encoding="utf-8").write("\n".join(r) + "\n")
PY
}

# ---- The parts' own processes ----

case ${1:-} in
--part)
    PART=$2
    export PART
    "part_$PART"
    exit
    ;;
--sanitize)
    sanitize "$2" "$3"
    exit
    ;;
esac

# ---- The whole ----

usage() {
    sed -n '2,10s/^# \{0,1\}//p' $self
    exit "$1"
}

OUT='' QUICK=0 only='' total=
while [ $# -gt 0 ]; do
    case $1 in
    --quick) QUICK=1 ;;
    --only)
        [[ " $all_parts " == *" ${2:-} "* && -n ${2:-} ]] || usage 2 >&2
        only="$only $2"
        shift
        ;;
    --seconds)
        [[ ${2:-} =~ ^[0-9]+$ ]] || usage 2 >&2
        total=$2
        shift
        ;;
    -h | --help) usage 0 ;;
    -*) usage 2 >&2 ;;
    *) OUT=$1 ;;
    esac
    shift
done
[ -n "$OUT" ] || usage 2 >&2
[[ $OUT == /* ]] || OUT=$caller/$OUT
mkdir -p "$OUT"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
# 5 GB of weights: in memory where there is room, as a file cache would hold them.
MODELS=/dev/shm
[ "$(df --output=avail -B1G /dev/shm 2>/dev/null | tail -n 1 | tr -d ' ')" -ge 8 ] 2>/dev/null || MODELS=${TMPDIR:-/tmp}
MODELS=$MODELS/latentd-models
# Which kernels won: of this report alone, so that it neither reads nor leaves anything.
LATENTD_CACHE=$WORK/cache
mkdir "$LATENTD_CACHE"
export OUT QUICK WORK MODELS LATENTD_CACHE
rm -f "$OUT"/{log.txt,parts.tsv,figures.tsv,torch.json,kernels-bench.txt,report.md} "$OUT"/bench-*.json
[ $QUICK = 0 ] || : "${total:=570}"
started=$(date +%s)

# Seconds; --quick takes the first.
declare -A limits=([machine]="30 60" [build]="300 400" [kernels]="90 240" [goldens]="90 300" [bytes]="60 200" [times]="150 300"
    [torch]="150 560" [sanitizers]="150 560")

outcome() {
    case $1 in
    0) echo pass ;;
    "$INCOMPLETE") echo incomplete ;;
    124 | 137) echo "time limit" ;;
    *) echo FAIL ;;
    esac
}

run_part() {
    local part=$1 limit status=0 start
    read -r limit full <<<"${limits[$part]}"
    [ $QUICK = 1 ] || limit=$full
    start=$(date +%s)
    # the table must come out before whoever gave --seconds ends us
    if [ -n "$total" ] && [ $((started + total - start - 15)) -lt "$limit" ]; then
        limit=$((started + total - start - 15))
    fi
    printf '\n==== %s, at most %s s ====\n' "$part" "$limit" >>"$OUT/log.txt"
    if [ "$limit" -lt 12 ]; then
        result="not run" notes="no time left"
    elif [ "$part" != machine ] && [ "$part" != build ] && [ "$part" != torch ] && [ ! -s "$WORK/bin" ]; then
        result="not run" notes="no programs"
    else
        BIN=$(cat "$WORK/bin" 2>/dev/null || true) LIBS=$(cat "$WORK/libs" 2>/dev/null || true) PART_END=$((start + limit - 6)) \
            timeout -k 10 "$limit" bash $self --part "$part" >>"$OUT/log.txt" 2>&1 </dev/null || status=$?
        result=$(outcome $status)
        PART=$part trials_left
        notes=$(grep -v '^$' "$WORK/note.$part" 2>/dev/null | tr '\t|' ' /' | paste -sd '\t' | sed 's/\t/; /g') || notes=
        if [ "$status" != 0 ] && [ -z "$notes" ]; then
            notes=$(tail -n 1 "$OUT/log.txt" | tr '\t|' ' /' | cut -c 1-200)
        fi
    fi
    printf '%s\t%s\t%s\t%s\n' "$part" "$result" $(($(date +%s) - start)) "$notes" >>"$OUT/parts.tsv"
    echo "$part: $result, $(($(date +%s) - start)) s${notes:+; $notes}"
}

for part in $all_parts; do
    # which programs is needed by all that follow
    if [ -z "$only" ] || [[ "$only " == *" $part "* ]] || [ "$part" = build ]; then
        run_part "$part"
    fi
done
echo
if write_report 2>>"$OUT/log.txt"; then
    cat "$OUT/report.md"
else
    echo "the table could not be made: $(tail -n 1 "$OUT/log.txt")" | tee "$OUT/report.md"
    cat "$OUT/parts.tsv"
fi
[ ! -e "$MODELS/made" ] || echo "left for the next report: $MODELS"
! grep -qP '\t(FAIL|time limit)\t' "$OUT/parts.tsv"
