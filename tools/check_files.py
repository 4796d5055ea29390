#!/usr/bin/env python3
"""Fails on files that break the project's habits: whitespace, sizes, lengths, names, unlisted data.

* Text: no trailing blanks, no carriage returns, one final newline.
* Size: 400 kB; files under tests/data/ and policies/ 16 MB each and 64 MB together.
* Length: 600 lines, kernels 500.
* Names never use the words of BANNED.
* Every file under tests/data/ is in tests/data/README.md with its SHA-256, or in a SHA256SUMS file
  of its folder that is. Fuzz corpora are not listed.
"""

import hashlib
import pathlib
import re
import subprocess
import sys

SOURCE = (".h", ".c", ".cc", ".cu", ".cuh", ".py", ".sh", ".cmake")
TEXT = (*SOURCE, ".md", ".txt", ".json", ".yaml", ".yml", ".toml", ".in", ".map")
DATA = ("tests/data/", "policies/")
UNCHECKED_TEXT = (*DATA, "bench/results/", "codegen/tvm/generated/")
BANNED = re.compile(
    r"(^|[_/])(fast|new|old|base|utils?|common|misc|legacy|v2|helpers?|manager)[_./]"
)
MEGABYTE = 1 << 20


def tracked(root: pathlib.Path) -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return sorted(name for name in set(listing) if (root / name).is_file())


def text_errors(name: str, content: bytes):
    if b"\r" in content:
        yield f"{name}: carriage return"
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.endswith((b" ", b"\t")):
            yield f"{name}:{number}: trailing blank"
    if content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        yield f"{name}: does not end with one newline"


def length_errors(name: str, content: bytes):
    limit = 500 if name.startswith("src/kernels/") and not name.endswith("_test.cc") else 600
    lines = content.count(b"\n")
    if lines > limit:
        yield f"{name}: {lines} lines, the limit is {limit}"


def size_errors(sizes: dict[str, int]):
    for name, size in sizes.items():
        limit = 16 * MEGABYTE if name.startswith(DATA) else 400_000
        if size > limit:
            yield f"{name}: {size} bytes, the limit is {limit}"
    total = sum(size for name, size in sizes.items() if name.startswith(DATA))
    if total > 64 * MEGABYTE:
        yield f"tests/data and policies: {total} bytes together, the limit is {64 * MEGABYTE}"


def data_errors(root: pathlib.Path, names: list[str]):
    """Files under tests/data that no list names with the hash they have."""
    prefix = "tests/data/"
    data = [n for n in names if n.startswith(prefix) and not n.startswith(prefix + "fuzz/")]
    readme = root / prefix / "README.md"
    rows = readme.read_text().splitlines() if readme.is_file() else []

    def digest(name: str) -> str:
        return hashlib.sha256((root / name).read_bytes()).hexdigest()

    def in_readme(name: str) -> bool:
        short = name.removeprefix(prefix)
        spelled = re.compile(rf"(?<![\w./-]){re.escape(short)}(?![\w/-])")
        return any(spelled.search(row) and digest(name) in row for row in rows)

    def in_sums(name: str) -> bool:
        path = root / name
        for folder in path.parents:
            if folder == root / "tests":
                return False
            sums = folder / "SHA256SUMS"
            line = f"{digest(name)}  {path.relative_to(folder).as_posix()}"
            if sums.is_file() and line in sums.read_text().splitlines():
                return in_readme(sums.relative_to(root).as_posix())
        return False

    for name in data:
        if name.endswith((".md", ".py")) or in_readme(name) or in_sums(name):
            continue
        yield f"{name}: not in tests/data/README.md with SHA-256 {digest(name)}"


def errors(root: pathlib.Path):
    """Every broken rule of a repository, as a line of text."""
    names = tracked(root)
    yield from size_errors({name: (root / name).stat().st_size for name in names})
    for name in names:
        if name.startswith(UNCHECKED_TEXT):
            continue
        if BANNED.search(name):
            yield f"{name}: a name that says time or nothing"
        if name.endswith(TEXT) or "." not in pathlib.PurePath(name).name:
            content = (root / name).read_bytes()
            yield from text_errors(name, content)
            if name.endswith(SOURCE):
                yield from length_errors(name, content)
    yield from data_errors(root, names)


def main() -> int:
    root = pathlib.Path(__file__).resolve().parent.parent
    found = list(errors(root))
    print("\n".join(found) if found else f"files: {len(tracked(root))} files, clean")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
