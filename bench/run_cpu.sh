#!/usr/bin/env bash
# Measures the CPU's speed table: three layer shapes, M from 1 to 256, one and two threads, and the
# row-major layout at M = 1. Writes <results>/<date>-<cpu>.json and .md.
#
#   bench/run_cpu.sh [nibble] [results folder]        default: build/nibble bench/results
#   SECONDS_A_CASE (0.6): time in each case; its roofs take about as long
#   SHAPES ("4096x14336 2048x16384 16384x2048"): K x N; ROWS (1,4,16,64,256): M; THREADS ("1 2")
#   COMMIT: the program's commit, when it is not the checkout's
set -euo pipefail
cd "$(dirname "$0")/.."

nibble=${1:-build/nibble}
results=${2:-bench/results}
seconds=${SECONDS_A_CASE:-0.6}
shapes=${SHAPES:-4096x14336 2048x16384 16384x2048}
rows=${ROWS:-1,4,16,64,256}
thread_counts=${THREADS:-1 2}
[[ -x $nibble ]] || { echo "run_cpu.sh: $nibble is not built; run: make build" >&2; exit 1; }

command="SECONDS_A_CASE=$seconds SHAPES='$shapes' ROWS=$rows THREADS='$thread_counts' bench/run_cpu.sh"

formats=int4-g128,int4-g32,nvfp4,mxfp4
cases=$(mktemp)
trap 'rm -f "$cases"' EXIT

measure() {
  echo "nibble bench $*" >&2
  "$nibble" bench --device cpu --seconds "$seconds" --json "$@" >>"$cases"
}

cores=$(nproc)
for threads in $thread_counts; do
  ((threads <= cores)) || continue
  for shape in $shapes; do
    k=${shape%x*} n=${shape#*x}
    measure --threads "$threads" --k "$k" --n "$n" --m "$rows" --format "$formats" \
      --compute exact,int8 --x-dtype bf16,f32
    measure --threads "$threads" --k "$k" --n "$n" --m 1 --format int4-g128,nvfp4 \
      --compute int8 --x-dtype bf16 --layout row_major
  done
done

mkdir -p "$results"
python3 bench/report.py --collect "$cases" --nibble "$nibble" --command "$command" \
  --results "$results" ${COMMIT:+--commit "$COMMIT"}
