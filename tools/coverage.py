#!/usr/bin/env python3
"""Prints the line coverage of host code, by stage, of a build with NIBBLE_COVERAGE that has run.

Usage: coverage.py BUILD
"""

import collections
import gzip
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def executed_lines(build: pathlib.Path) -> dict[str, dict[int, bool]]:
    """For each source file of src/ and include/: line number → whether any test executed it."""
    files: dict[str, dict[int, bool]] = collections.defaultdict(dict)
    for data in sorted(build.rglob("*.gcda")):
        output = subprocess.run(
            ["gcov", "--json-format", "--stdout", str(data)],
            cwd=build,
            capture_output=True,
            check=True,
        ).stdout
        if output[:2] == b"\x1f\x8b":
            output = gzip.decompress(output)
        for document in output.splitlines():
            for entry in json.loads(document)["files"] if document.strip() else []:
                path = pathlib.Path(build, entry["file"]).resolve()
                if not path.is_relative_to(ROOT):
                    continue
                name = path.relative_to(ROOT).as_posix()
                if not name.startswith(("src/", "include/")) or name.endswith("_test.cc"):
                    continue
                for line in entry["lines"]:
                    number = line["line_number"]
                    files[name][number] = files[name].get(number, False) or line["count"] > 0
    return files


def main(folder: str) -> int:
    files = executed_lines(pathlib.Path(folder).resolve())
    if not files:
        print(f"{folder}: no coverage data", file=sys.stderr)
        return 1
    groups: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for name, lines in files.items():
        for key in ("/".join(name.split("/")[:2]), "all"):
            groups[key][0] += sum(lines.values())
            groups[key][1] += len(lines)
    for key, (hit, total) in sorted(groups.items(), key=lambda item: (item[0] == "all", item[0])):
        print(f"{key:24} {hit:6} of {total:6} lines {100 * hit / total:5.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
