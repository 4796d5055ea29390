"""The document checker reports names that do not exist, and passes over what is no name."""

import pathlib

import check_docs
import pytest


@pytest.fixture
def project(tmp_path: pathlib.Path) -> check_docs.Project:
    files = {
        "Makefile": "test: build\n\t@true\nbuild:\n\t@true\nCC := gcc\n",
        "CMakePresets.json": '{"configurePresets": [{"name": "asan"}]}',
        "README.md": "",
        "src/core/format.cc": "",
        "src/core/format.h": "",
        "include/nibble/core.h": "",
        "docs/howto/add-a-format.md": "",
        "tools/setup": "",
        "frontends/cli/main.cc": 'app.add_subcommand("quantize"); sub->add_option("-f,--format");',
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return check_docs.Project(tmp_path)


def errors_of(text: str, project: check_docs.Project) -> list[str]:
    path = project.root / "docs/page.md"
    path.write_text(text)
    return [error.split(": ", 1)[1] for error in check_docs.errors(path, project)]


@pytest.mark.parametrize(
    "text,error",
    [
        ("see `src/core/gone.cc`", "no such path: src/core/gone.cc"),
        ("see `src/gone/`", "no such path: src/gone/"),
        ("see `core/gone.h`", "no such path: core/gone.h"),
        ("see `nibble/gone.h`", "no such path: nibble/gone.h"),
        ("see `src/core/*_gone.cc`", "no such path: src/core/*_gone.cc"),
        ("see `src/core/format.{h,cu}`", "no such path: src/core/format.{h,cu}"),
        ("see `GONE.md`", "no such path: GONE.md"),
        ("run `tools/gone`.", "no such path: tools/gone"),
        ("[a link](howto/gone.md)", "dangling link: howto/gone.md"),
        ("run `make gone`", "no such target: make gone"),
        ("```\ncd x && make gone\n```", "no such target: make gone"),
        ("`make CC`", None),
        ("run `nibble gone`", "no such command: nibble gone"),
        ("```\n$ build/nibble gone a b\n```", "no such command: nibble gone"),
        ("`nibble quantize a b --gone 3`", "no such option: nibble quantize --gone"),
        ("```\nnibble quantize a b \\\n  --gone 3\n```", "no such option: nibble quantize --gone"),
        ("`cmake --preset gone`", "no such preset: gone"),
    ],
)
def test_reports_a_dangling_name(text, error, project):
    assert errors_of(text, project) == ([error] if error else [])


@pytest.mark.parametrize(
    "text",
    [
        "`src/core/format.cc`, `src/core/format.cc`: both",
        "`core/format.h` and `nibble/core.h`",
        "`src/core/format.{h,cc}` and `src/core/*.cc`",
        "`src/<stage>/x.cc`, `docs/adr/NNNN-title.md`, `src/…/x.h`",
        "[a](howto/add-a-format.md) [b](../README.md#part) [c](https://example.com/x)",
        "`bf16/f32`, `1/8`, `and/or`, `<immintrin.h>`, `gate|up`",
        "`build/nibble`, `/etc/hosts`",
        "`make test` and `make -j2 build`, but to make sense of it, make haste",
        "`nibble quantize a b --format nvfp4`",
        "```sh\nmake build # then rest\nnibble quantize x \\\n  y --format f\n```",
        "`cmake --preset asan`",
        "the word nibble means half a byte; `nibble::Format` is a class",
    ],
)
def test_passes_over_what_exists_or_is_no_name(text, project):
    assert errors_of(text, project) == []


def test_this_repository_is_clean():
    assert check_docs.main() == 0
