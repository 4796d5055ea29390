#!/usr/bin/env bash
# Format, spelling, layers, documents and files. With --fix it rewrites what can be rewritten.
# `tools/check.sh NAME…` runs single checks: format ruff codespell layers files docs.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PATH="$PWD/.venv/bin:$PATH"
fix=0
[[ ${1:-} == --fix ]] && { fix=1; shift; }

sources() { git ls-files -co --exclude-standard -- '*.h' '*.c' '*.cc' '*.cu' '*.cuh' '*.inc'; }
scripts() { git ls-files -co --exclude-standard -- '*.py'; }

check_format() {
  if ((fix)); then
    sources | xargs -r -d '\n' clang-format -i
  else
    sources | xargs -r -d '\n' clang-format --dry-run -Werror
  fi
}

check_ruff() {
  if ((fix)); then
    scripts | xargs -r -d '\n' ruff check -q --fix && scripts | xargs -r -d '\n' ruff format -q
  else
    scripts | xargs -r -d '\n' ruff check -q && scripts | xargs -r -d '\n' ruff format -q --check
  fi
}

check_codespell() { git ls-files -co --exclude-standard | xargs -r -d '\n' codespell; }
check_layers() { python3 tools/check_layers.py; }
check_files() { python3 tools/check_files.py; }
check_docs() { python3 tools/check_docs.py; }

checks=("$@")
((${#checks[@]})) || checks=(format ruff codespell layers files docs)
failed=()
for check in "${checks[@]}"; do
  "check_$check" || failed+=("$check")
done
if ((${#failed[@]})); then
  echo "check: failed: ${failed[*]}"
  exit 1
fi
echo "check: ${checks[*]}: clean"
