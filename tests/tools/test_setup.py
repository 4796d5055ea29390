"""The set-up's refusals: what it prints and how it ends where it may not install."""

import pathlib
import shutil
import subprocess

import pytest

SETUP = pathlib.Path(__file__).resolve().parents[2] / "tools/setup"
TOOLS = [
    "bash",
    "dirname",
    "sed",
    "sort",
    "head",
    "cat",
    "mktemp",
    "rm",
    "env",
    "make",
    "g++",
    "cp",
]


@pytest.fixture
def machine(tmp_path: pathlib.Path):
    """A machine with an ordinary user, without sudo, cmake and libraries."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found:
            (folder / tool).symlink_to(found)
    stub(folder, "id", "echo 1000")
    stub(folder, "dpkg-query", "exit 1")
    return folder


def stub(folder: pathlib.Path, name: str, body: str):
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def setup(machine: pathlib.Path, *groups: str):
    return subprocess.run(
        [str(SETUP), *groups],
        env={"PATH": str(machine)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_prints_the_one_missing_command_and_exits_3_without_root_and_sudo(machine):
    done = setup(machine, "build")
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("apt-get update && apt-get install -y ")
    assert lines[0].split("--no-install-recommends ")[1].split() == [
        "cmake",
        "libgtest-dev",
        "libfmt-dev",
        "nlohmann-json3-dev",
        "libcli11-dev",
        "libprotozero-dev",
    ]


def test_is_silent_where_nothing_is_missing_though_the_user_is_not_root(machine):
    stub(machine, "dpkg-query", "echo -n installed")
    stub(machine, "cmake", "echo cmake version 3.25.1")
    done = setup(machine, "build")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_uses_sudo_where_it_asks_for_no_password(machine, tmp_path):
    stub(machine, "dpkg-query", "echo -n installed")
    stub(machine, "apt-get", "exit 0")
    stub(machine, "later", "echo cmake version 3.30.0")
    stub(machine, "sudo", f'echo "$@" >>{tmp_path}/log; cp {machine}/later {machine}/cmake')
    done = setup(machine, "build")
    assert done.returncode == 0
    commands = (tmp_path / "log").read_text()
    assert "apt-get install -y --no-install-recommends cmake ninja-build ccache" in commands


def test_a_failed_installation_shows_its_output_and_exits_1(machine):
    stub(machine, "id", "echo 0")
    stub(machine, "apt-get", "echo no network; exit 100")
    done = setup(machine, "build")
    assert done.returncode == 1
    assert "no network" in done.stderr


def test_an_unknown_group_exits_2(machine):
    done = setup(machine, "nonsense")
    assert done.returncode == 2
    assert "unknown group 'nonsense'" in done.stderr


def test_names_the_cross_compiler_and_the_emulator(machine):
    done = setup(machine, "aarch64")
    assert done.returncode == 3
    packages = done.stdout.split("--no-install-recommends ")[1].split()
    assert packages == ["g++-aarch64-linux-gnu", "qemu-user", "googletest"]
