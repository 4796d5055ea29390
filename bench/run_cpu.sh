#!/usr/bin/env bash
# Measures the CPU's speed table: three layer shapes, M from 1 to 256, one and two threads, and the
# row-major layout at M = 1. Writes <results>/<date>-<cpu>.json and .md.
#
#   bench/run_cpu.sh [nibble] [results folder]        default: build/nibble bench/results
#   SECONDS_A_CASE (0.6): time in each case; its roofs take about as long
set -euo pipefail
cd "$(dirname "$0")/.."

nibble=${1:-build/nibble}
results=${2:-bench/results}
seconds=${SECONDS_A_CASE:-0.6}
[[ -x $nibble ]] || { echo "run_cpu.sh: $nibble is not built; run: make build" >&2; exit 1; }

formats=int4-g128,int4-g32,nvfp4,mxfp4
cases=$(mktemp)
trap 'rm -f "$cases"' EXIT

measure() {
  echo "nibble bench $*" >&2
  "$nibble" bench --device cpu --seconds "$seconds" --json "$@" >>"$cases"
}

cores=$(nproc)
for threads in 1 2; do
  ((threads <= cores)) || continue
  for shape in "4096 14336" "2048 16384" "16384 2048"; do
    read -r k n <<<"$shape"
    measure --threads "$threads" --k "$k" --n "$n" --m 1,4,16,64,256 --format "$formats" \
      --compute exact,int8 --x-dtype bf16,f32
    measure --threads "$threads" --k "$k" --n "$n" --m 1 --format int4-g128,nvfp4 \
      --compute int8 --x-dtype bf16 --layout row_major
  done
done

mkdir -p "$results"
python3 bench/report.py --collect "$cases" --nibble "$nibble" --seconds "$seconds" \
  --results "$results"
