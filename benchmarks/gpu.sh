#!/usr/bin/env bash
# What masks cost on a GPU: time of a step beside plain fine-tuning, images a second, with and without XLA and bfloat16,
# and how long steps wait for images. Takes less than ten minutes. It was not run on a GPU yet.
#
#   benchmarks/gpu.sh                                                     # ResNet-50, 224 px, 64 images
#   benchmarks/gpu.sh --network=mobilenet_v2 --size=96 --batch=128
#   benchmarks/gpu.sh --network=mobilenet_v2 --size=32 --batch=4 --rounds=2   # a try, on any processor
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python}"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no GPU"
run() {
  timeout 110 "$python" benchmarks/gpu.py "$@" || echo "ended, or took more than 110 seconds: $*"
}
for precision in none bfloat16; do
  run --precision="$precision" "$@"
  run --precision="$precision" --xla "$@"
done
run --wait "$@"
