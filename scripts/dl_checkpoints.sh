#!/usr/bin/env bash
# Fetches the models that latentd serves, with all that they need to start without a network, into MODEL_DIR (./models).
# The same lists and flags as the ai-runner's script of this name; the models of pipelines that latentd does not have are
# left out. Runs `latentd pull` for each, so an interrupted run goes on where it stopped.
set -euo pipefail

usage() {
    cat <<'END'
usage: scripts/dl_checkpoints.sh [--beta | --restricted | --batch | --all] [--dry-run] [--help]
  (none), --all  every model that needs no approval, and the beta ones
  --beta         the models of Livepeer's beta: RealVisXL Lightning, SDXL-Lightning, instruct-pix2pix, x4-upscaler, SVD 1.1
  --restricted   nothing here: the ai-runner's list holds FLUX.1-dev and Llama, which latentd does not serve
  --batch        nothing here: the ai-runner's list holds SAM 2, which latentd does not serve
  --dry-run      only list what would be fetched

  MODEL_DIR      where the models go (./models)
  HF_TOKEN       a token of an account that has accepted the licences of gated models; without one they are left out
                 and named at the end, with exit status 1
  HF_ENDPOINT    another hub
  LATENTD        the program (build/latentd beside this script, else latentd from PATH)
END
}

mode=all
options=()
for argument in "$@"; do
    case $argument in
    --beta | --restricted | --batch | --all) mode=${argument#--} ;;
    --dry-run) options+=(--dry-run) ;;
    --help | -h) usage && exit 0 ;;
    --live | --tensorrt) echo "dl_checkpoints.sh: $argument: latentd has no live pipelines" >&2 && exit 2 ;;
    *) echo "dl_checkpoints.sh: $argument is unknown" >&2 && usage >&2 && exit 2 ;;
    esac
done

export MODEL_DIR=${MODEL_DIR:-./models}
here=$(cd "$(dirname "$0")/.." && pwd)
latentd=${LATENTD:-$here/build/latentd}
[ -x "$latentd" ] || latentd=latentd
failed=()

# pull ID [OPTION…]
pull() {
    echo "== $1" >&2
    "$latentd" pull "$@" --alone "${options[@]+"${options[@]}"}" || failed+=("$1")
}

# What every pipeline looks for beside its model. The processor is for the ai-runner, if it reads the same folder: latentd
# reads the one in the checker's own repository.
shared() {
    pull CompVis/stable-diffusion-safety-checker
    pull openai/clip-vit-base-patch32 --include preprocessor_config.json
}

# The whole of SDXL base serves as itself and as the rest of SDXL-Lightning.
beta() {
    shared
    pull SG161222/RealVisXL_V4.0_Lightning
    pull stabilityai/stable-diffusion-xl-base-1.0
    pull ByteDance/SDXL-Lightning --include 'sdxl_lightning_[248]step_unet.safetensors'
    pull timbrooks/instruct-pix2pix
    pull stabilityai/stable-diffusion-x4-upscaler
    pull stabilityai/stable-video-diffusion-img2vid-xt-1-1
}

others() {
    pull stabilityai/sd-turbo
    pull stabilityai/sdxl-turbo
    pull stable-diffusion-v1-5/stable-diffusion-v1-5 # runwayml/stable-diffusion-v1-5 is gone from the hub
    pull prompthero/openjourney-v4
    pull SG161222/RealVisXL_V4.0
    pull SG161222/Realistic_Vision_V6.0_B1_noVAE
    pull stabilityai/sd-vae-ft-ema # its VAE
    pull stabilityai/stable-video-diffusion-img2vid-xt
}

case $mode in
all) beta && others ;;
beta) beta ;;
restricted | batch) echo "--$mode: none of these models is one that latentd serves" >&2 ;;
esac

if [ ${#failed[@]} != 0 ]; then
    echo "not fetched: ${failed[*]}" >&2
    exit 1
fi
