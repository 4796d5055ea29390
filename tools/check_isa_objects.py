#!/usr/bin/env python3
"""Fails when an object file compiled for one ISA defines a symbol that the linker may share.

A weak symbol (an inline function, a template instance) in such a file can be the copy that the
linker keeps for the whole program, which then dies on a machine without that ISA.

Usage: check_isa_objects.py OBJECT... — objects whose name does not say an ISA are passed over.
"""

import re
import subprocess
import sys

ISA_OBJECT = re.compile(r"_(avx\w*|neon\w*|sve\w*)\.cc\.(o|obj)$")
SHARED_KINDS = "WwVvu"  # weak, weak object, unique global


def shared_symbols(path: str) -> list[str]:
    """Demangled names of the weak symbols that an object file defines."""
    listing = subprocess.run(
        ["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True
    ).stdout
    lines = (line.split(maxsplit=2) for line in listing.splitlines())
    return [parts[2] for parts in lines if len(parts) == 3 and parts[1] in SHARED_KINDS]


def main(argv: list[str]) -> int:
    objects = [path for path in argv if ISA_OBJECT.search(path)]
    if not objects:
        print("check_isa_objects: no object file of an ISA among the arguments", file=sys.stderr)
        return 1
    found = [f"{path}: weak symbol {name}" for path in objects for name in shared_symbols(path)]
    print("\n".join(found) if found else f"ISA objects: {len(objects)} files, no weak symbols")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
