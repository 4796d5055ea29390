#!/usr/bin/env python3
"""Prints what a build weighs — CUDA instances, library size, slowest file — against its budget.

Usage: build_report.py BUILD. Fails above the budget, or where no CUDA instance was built.
"""

import pathlib
import sys

LIBRARY_MEGABYTES = 64
SLOWEST_SECONDS = 120


def object_seconds(build: pathlib.Path) -> dict[str, float]:
    """Seconds each object file took when it was last compiled, from ninja's log."""
    log = build / ".ninja_log"
    times = {}
    for line in log.read_text().splitlines() if log.is_file() else []:
        fields = line.split("\t")
        if len(fields) == 5 and fields[3].endswith(".o"):
            times[fields[3]] = (int(fields[1]) - int(fields[0])) / 1000
    return times


def main(folder: str) -> int:
    build = pathlib.Path(folder)
    instances = sorted(build.glob("src/**/*.cu.o"))
    megabytes = (build / "src/libnibble.a").stat().st_size / 1e6
    print(
        f"CUDA instances: {len(instances)}, {sum(p.stat().st_size for p in instances) / 1e6:.1f} MB"
    )
    print(f"libnibble.a: {megabytes:.1f} MB of {LIBRARY_MEGABYTES}")
    good = bool(instances) and megabytes <= LIBRARY_MEGABYTES
    times = object_seconds(build)
    if times:
        slowest = max(times, key=times.get)
        print(f"slowest file: {slowest}, {times[slowest]:.1f} s of {SLOWEST_SECONDS}")
        good = good and times[slowest] <= SLOWEST_SECONDS
    return int(not good)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
