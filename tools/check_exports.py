#!/usr/bin/env python3
"""Fails unless a shared library exports exactly the functions that a C header declares.

Usage: check_exports.py LIBRARY HEADER
"""

import pathlib
import re
import subprocess
import sys

DECLARATION = re.compile(r"\b(nibble_\w+)\s*\(")


def declared(header: str) -> set[str]:
    """Names of the functions a C header declares."""
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", header, flags=re.S)
    code = re.sub(r"^\s*#(?:[^\n\\]|\\.)*", "", code, flags=re.M | re.S)
    return set(DECLARATION.findall(code))


def exported(library: str) -> set[str]:
    """Names a shared library defines for others."""
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[-1].split("@")[0] for line in listing.splitlines() if line.strip()}


def main(library: str, header: str) -> int:
    promised = declared(pathlib.Path(header).read_text())
    found = exported(library)
    problems = [f"{name} is declared but not exported" for name in sorted(promised - found)]
    problems += [f"{name} is exported but not declared" for name in sorted(found - promised)]
    if not promised:
        problems.append(f"{header} declares no function")
    print("\n".join(problems) if problems else f"exports: {len(found)} functions, as declared")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
