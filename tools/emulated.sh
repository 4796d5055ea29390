#!/usr/bin/env bash
# Runs the tests of an AArch64 build under qemu-user: on the first CPU all of them, on the others
# what depends on instruction sets, so that dispatch falls back as it would on those processors.
#
#   tools/emulated.sh BUILD [QEMU_CPU...]        (default: max neoverse-n1 cortex-a53)
#
# Left out: what measures time, which means nothing here; a fork of a process with threads, which
# qemu-user does not do; and the pinning of all threads of the process, which has the emulator's
# too. The last line is `N passed, N failed`. Exit code 1 when one failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
build=${1:?usage: tools/emulated.sh BUILD [QEMU_CPU...]}
shift
cpus=("$@")
((${#cpus[@]})) || cpus=(max neoverse-n1 cortex-a53)
export QEMU_LD_PREFIX=${QEMU_LD_PREFIX:-/usr/aarch64-linux-gnu}
export GTEST_FILTER='-RoofMeter.*:BenchCase*:*.AForkedChildStartsItsOwnWorkers:PinThreads.*'
export GTEST_TOTAL_SHARDS=$(nproc)
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

# run_shard CPU EXECUTABLE INDEX: leaves its output in a file of that name.
run_shard() {
  local log
  log="$results/$1 ${2##*/} $3"
  QEMU_CPU=$1 GTEST_SHARD_INDEX=$3 qemu-aarch64 "$2" >"$log" 2>&1
  echo "exit code $?" >>"$log"
}
export -f run_shard
export results

mapfile -t executables < <(find "$build" -name '*_test' -type f -perm -u+x -not -name 'bench_*' |
  sort)
((${#executables[@]})) || { echo "emulated: no test executables in $build" >&2; exit 1; }
for cpu in "${cpus[@]}"; do
  for executable in "${executables[@]}"; do
    case ${executable##*/} in
      core_test | internal_test | kernels_test | plan_test | ops_test) ;;
      *) [[ $cpu == "${cpus[0]}" ]] || continue ;;
    esac
    for ((shard = 0; shard < GTEST_TOTAL_SHARDS; ++shard)); do
      printf '%s\0%s\0%s\0' "$cpu" "$executable" "$shard"
    done
  done
done | xargs -0 -r -n 3 -P "$(nproc)" bash -c 'run_shard "$@"' run

passed=0 failed=0
for log in "$results"/*; do
  name=${log##*/}
  ok=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) tests\?\.$/\1/p' "$log" | tail -n 1)
  bad=$(sed -n 's/^ *\([0-9]*\) FAILED TESTS\?$/\1/p' "$log" | tail -n 1)
  [[ $(tail -n 1 "$log") == 'exit code 0' ]] || bad=$((${bad:-0} > 0 ? bad : 1))
  passed=$((passed + ${ok:-0})) failed=$((failed + ${bad:-0}))
  echo "emulated: ${name% *}, part $((${name##* } + 1)): ${ok:-0} passed, ${bad:-0} failed"
  ((${bad:-0} == 0)) || grep -v '^\[ *\(RUN\|OK\) ' "$log" | tail -n 60
done

# check NAME COMMAND...: one test; its output is shown where it fails.
check() {
  local name=$1 log="$results/check"
  shift
  if "$@" >"$log" 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "emulated: $name FAILED"
    tail -n 40 "$log"
  fi
}
lists_the_same_kernels() {
  diff <(qemu-aarch64 "$build/nibble" kernels --markdown) \
    <(sed '/^## CUDA rows$/,$d' docs/SUPPORTED.md | sed '$d')
}
check "the C API" qemu-aarch64 "$build/tests/c_api_test_c"
check "doctor" qemu-aarch64 "$build/nibble" doctor
check "docs/SUPPORTED.md" lists_the_same_kernels
echo "$passed passed, $failed failed"
((failed == 0))
