#!/usr/bin/env bash
# Builds the libFuzzer targets with clang, replays their corpora and fuzzes each for SECONDS, two
# at a time. New inputs go to build-fuzz/corpus/, never into tests/data/. SECONDS 0: replay only.
#
#   tools/fuzz.sh [SECONDS]
#
# The last line is `N passed, N failed`: one test a target and step. Exit code 1 when one failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PATH="$PWD/.venv/bin:$PATH"
seconds=${1:-20}
tools/setup build fuzz || exit

for version in 16 18 17 15 14; do
  clang=$(command -v "clang++-$version") && break
done
[[ -n ${clang:-} ]] || { echo "fuzz: no clang" >&2; exit 1; }
generator=()
command -v ninja >/dev/null && [[ ! -f build-fuzz/CMakeCache.txt ]] && generator=(-G Ninja)
cmake --preset fuzz "${generator[@]}" --log-level=NOTICE \
  -DCMAKE_CXX_COMPILER="$clang" -DCMAKE_C_COMPILER="${clang/clang++/clang}" || exit
cmake --build build-fuzz -j "$(nproc)" --target fuzzers || exit

# run_target NAME: replay, then fuzz. Leaves one file a step in build-fuzz/results.
run_target() {
  local name=$1 seeds="tests/data/fuzz/$1" corpus="build-fuzz/corpus/$1" log="build-fuzz/log/$1"
  mkdir -p "$corpus"
  local limits=(-timeout=10 -rss_limit_mb=2048 -artifact_prefix="build-fuzz/log/$name-")
  if [[ -z $(find "$seeds" -type f -print -quit 2>/dev/null) ]]; then
    echo "fuzz: $name: no corpus in $seeds" >"$log.replay"
    echo failed >"build-fuzz/results/$name.replay"
    return
  fi
  if "build-fuzz/$name" "${limits[@]}" -runs=0 "$seeds" >"$log.replay" 2>&1; then
    echo passed >"build-fuzz/results/$name.replay"
  else
    echo failed >"build-fuzz/results/$name.replay"
    return
  fi
  ((seconds == 0)) && return
  if "build-fuzz/$name" "${limits[@]}" -max_total_time="$seconds" "$corpus" "$seeds" \
    >"$log.fuzz" 2>&1; then
    echo passed >"build-fuzz/results/$name.fuzz"
  else
    echo failed >"build-fuzz/results/$name.fuzz"
  fi
}
export -f run_target
export seconds

rm -rf build-fuzz/results build-fuzz/log
mkdir -p build-fuzz/results build-fuzz/log
mapfile -t targets <build-fuzz/fuzzers.txt
# shellcheck disable=SC2016 # the inner shell expands $1
printf '%s\n' "${targets[@]}" | xargs -r -n 1 -P 2 bash -c 'run_target "$1"' run

passed=0 failed=0
for result in build-fuzz/results/*; do
  [[ -f $result ]] || continue
  step=${result##*/}
  if [[ $(<"$result") == passed ]]; then
    passed=$((passed + 1))
    executed=$(grep -oE '^#[0-9]+' "build-fuzz/log/$step" | tail -n 1)
    echo "fuzz: ${step%.*}: ${step##*.} passed (${executed:-#0} runs)"
  else
    failed=$((failed + 1))
    echo "fuzz: ${step%.*}: ${step##*.} FAILED"
    tail -n 40 "build-fuzz/log/$step"
  fi
done
((passed + failed)) || { echo "fuzz: no target ran"; failed=1; }
echo "$passed passed, $failed failed"
((failed == 0))
