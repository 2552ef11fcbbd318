#!/usr/bin/env bash
# Imports go one way (see README, "The rooms"). Prints every #include that goes against it; exit status 1 when there is one.
set -euo pipefail
cd "$(dirname "$0")/.."
bad=0

# room → headers of include/ that it may use, besides those of base
base="config.h error.h buffer.h log.h json.h region.h thread_pool.h phase.h half.h hash.h cache.h notify.h utf8.h"
seam="tensor.h ops.h"
declare -A may=(
    [src/base]="$base"
    [kernels]="$base $seam backend.h packed.h plan.h noise.h"
    [src/weights]="$base $seam packed.h weights.h model_files.h"
    [src/text]="$base tokenizer.h"
    [src/media]="$base image.h video.h"
    [src/networks]="$base $seam weights.h model_files.h networks.h tiles.h"
    [src/schedulers]="$base $seam noise.h scheduler.h model_files.h"
    [src/pipelines]="$base $seam backend.h plan.h noise.h scheduler.h networks.h tiles.h weights.h model_files.h tokenizer.h image.h pipeline.h"
    [src/queue]="$base tensor.h ops.h plan.h image.h pipeline.h backend.h packed.h job.h pipe.h"
    [src/api]="$base image.h video.h streams.h pipeline.h job.h pipe.h api.h"
    [src/http]="$base image.h streams.h pipeline.h backend.h job.h pipe.h api.h"
    [src/commands]="*"
    [src/pull]="$base tensor.h ops.h weights.h"
    [src/main.c]="*"
)
# library header → the only folder that may include it
declare -A only=(
    [microhttpd.h]=src/http [png.h]=src/media [immintrin.h]=kernels/cpu [cuda_runtime_api.h]=kernels/cuda [cuda_runtime.h]=kernels/cuda
    [cuda_fp16.h]=kernels/cuda [cuda_bf16.h]=kernels/cuda [cublasLt.h]=kernels/cuda [cudnn.h]=kernels/cuda
    [curl/curl.h]=src/pull [openssl/evp.h]=src/pull
    [libavcodec/avcodec.h]=src/media [libavformat/avformat.h]=src/media [libavutil/opt.h]=src/media
    [jpeglib.h]=src/media [webp/decode.h]=src/media [webp/demux.h]=src/media [gif_lib.h]=src/media
)

room_of() {
    case $1 in
    kernels/*) echo kernels ;;
    src/main.c) echo src/main.c ;;
    *) dirname "$1" ;;
    esac
}

while read -r file; do
    room=$(room_of "$file")
    while read -r header; do
        for lib in "${!only[@]}"; do
            if [ "$header" = "$lib" ] && [[ $file != ${only[$lib]}/* ]]; then
                echo "$file: only ${only[$lib]} includes <$header>"; bad=1
            fi
        done
        [ -e "include/$header" ] || continue
        [ -e "$(dirname "$file")/$header" ] && continue # its own folder's, of the same name
        case " ${may[$room]:-} " in
        *" $header "* | " * ") ;;
        *) echo "$file: $room may not include \"$header\""; bad=1 ;;
        esac
    done < <(sed -nE 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*["<]([^">]+)[">].*/\1/p' "$file")
done < <(find src kernels -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | grep -E '^(src|kernels)/' | sort)
[ $bad = 0 ] && echo "imports go one way"
exit $bad
