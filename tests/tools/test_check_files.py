"""The file checker reports each broken habit."""

import hashlib
import pathlib
import subprocess

import check_files
import pytest


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def errors_of(root: pathlib.Path, files: dict[str, bytes]) -> list[str]:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return list(check_files.errors(root))


@pytest.mark.parametrize(
    "name,content,part",
    [
        ("src/core/a.cc", b"int a; \n", "trailing blank"),
        ("src/core/a.cc", b"int a;\r\n", "carriage return"),
        ("src/core/a.cc", b"int a;", "one newline"),
        ("tools/setup", b"x\n\n", "one newline"),
        ("src/core/a.cc", b"\n" * 601 + b"x\n", "602 lines, the limit is 600"),
        ("src/kernels/cpu/a.cc", b"x\n" * 501, "501 lines, the limit is 500"),
        ("src/core/utils.cc", b"", "says time or nothing"),
        ("src/core/new_format.cc", b"", "says time or nothing"),
        ("src/common/a.cc", b"", "says time or nothing"),
        ("docs/picture.png", b"x" * 400_001, "the limit is 400000"),
        ("tests/data/big.bin", b"x" * (16 * 1024 * 1024 + 1), "the limit is 16777216"),
        ("tests/data/a.bin", b"x", "not in tests/data/README.md"),
    ],
)
def test_reports_a_broken_habit(root, name, content, part):
    found = errors_of(root, {name: content})
    assert any(part in line and line.startswith(name) for line in found)


def test_accepts_ordinary_files(root):
    files = {
        "src/core/a.cc": b"int a;\n",
        "src/core/renewal.cc": b"int b;\n",
        "docs/picture.png": b"\r\n \n",
        "tests/data/fuzz/x_fuzz/seed": b"x",
    }
    assert errors_of(root, files) == []


def test_data_must_be_listed_with_the_hash_it_has(root):
    good = hashlib.sha256(b"x").hexdigest()
    data = {"tests/data/gptq/a.bin": b"x"}
    assert errors_of(root, {**data, "tests/data/README.md": b"| gptq/a.bin | - |\n"}) != []
    row = f"| gptq/a.bin | the tool | {good} |\n".encode()
    assert errors_of(root, {"tests/data/README.md": row}) == []
    assert errors_of(root, {"tests/data/gptq/a.bin": b"y"}) != []


def test_data_may_be_listed_by_a_checked_list_of_its_folder(root):
    sums = f"{hashlib.sha256(b'x').hexdigest()}  a.bin\n".encode()
    files = {"tests/data/gptq/a.bin": b"x", "tests/data/gptq/SHA256SUMS": sums}
    assert len(errors_of(root, files)) == 2
    row = f"| gptq/SHA256SUMS | {hashlib.sha256(sums).hexdigest()} |\n".encode()
    assert errors_of(root, {"tests/data/README.md": row}) == []
