"""The checks of object files and of the shared library's exports, on compiled examples."""

import pathlib
import shutil
import subprocess

import check_exports
import check_isa_objects
import pytest

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


def compile_file(folder: pathlib.Path, name: str, text: str, *flags: str) -> str:
    source = folder / name
    source.write_text(text)
    target = folder / f"{name}.o"
    subprocess.run(["g++", "-O0", *flags, str(source), "-c", "-o", str(target)], check=True)
    return str(target)


def test_an_inline_function_in_an_isa_object_is_reported(tmp_path, capsys):
    text = "inline int twice(int a) { return a + a; }\nint f(int a) { return twice(a); }\n"
    assert check_isa_objects.main([compile_file(tmp_path, "gemm_avx2.cc", text)]) == 1
    assert "weak symbol twice(int)" in capsys.readouterr().out


def test_a_template_instance_in_an_isa_object_is_reported(tmp_path):
    text = "template <class T> T twice(T a) { return a + a; }\nint f(int a) { return twice(a); }\n"
    assert check_isa_objects.main([compile_file(tmp_path, "gemm_avx512_vnni.cc", text)]) == 1


def test_static_functions_and_other_objects_pass(tmp_path):
    inline = "inline int twice(int a) { return a + a; }\nint f(int a) { return twice(a); }\n"
    good = compile_file(tmp_path, "gemm_avx2.cc", f"static {inline}")
    other = compile_file(tmp_path, "gemm_scalar.cc", inline)
    assert check_isa_objects.main([good, other]) == 0


def test_no_isa_object_at_all_is_a_failure(tmp_path):
    assert check_isa_objects.main([compile_file(tmp_path, "a.cc", "int f() { return 0; }\n")]) == 1


HEADER = """
#define NIBBLE_CALL(x) nibble_macro(x)
/* nibble_comment() */
int nibble_one(void);
const char* nibble_two(int a,  // nibble_note(
                       int b);
"""

BOTH = "int nibble_one() { return 1; } int nibble_two() { return 2; }"


@pytest.mark.parametrize(
    "body,message",
    [
        (BOTH, None),
        ("int nibble_one() { return 1; }", "nibble_two is declared but not exported"),
        (
            f"{BOTH} int other() {{ return 3; }}",
            "other is exported but not declared",
        ),
    ],
)
def test_exports_must_equal_the_header(tmp_path, capsys, body, message):
    (tmp_path / "c_api.h").write_text(HEADER)
    source = tmp_path / "lib.cc"
    source.write_text(f'extern "C" {{ {body} }}\n')
    library = tmp_path / "lib.so"
    command = ["g++", "-shared", "-fPIC", "-nostdlib", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    code = check_exports.main(str(library), str(tmp_path / "c_api.h"))
    assert code == (1 if message else 0)
    assert not message or message in capsys.readouterr().out
