"""Runs dump_numbers, the test program that writes the library's numbers to files."""

import os
import pathlib
import subprocess
import tempfile

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("NIBBLE_BUILD_DIR", ROOT / "build"))
PROGRAM = BUILD / "tests" / "dump_numbers"


def dump(values: np.ndarray, *arguments) -> bytes:
    """What dump_numbers makes of the values."""
    if not PROGRAM.is_file():
        pytest.fail(f"{PROGRAM} is not built; run: make test")
    with tempfile.TemporaryDirectory() as folder:
        source, result = pathlib.Path(folder) / "in", pathlib.Path(folder) / "out"
        np.ascontiguousarray(values).tofile(source)
        done = subprocess.run(
            [PROGRAM, *map(str, arguments), source, result],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return result.read_bytes()
