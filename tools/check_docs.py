#!/usr/bin/env python3
"""Fails when a Markdown file names a path or a command that does not exist.

Checked are links, and in code spans and code blocks: paths of the repository (also as written
after `src/` or `include/`), `make <target>`, `cmake --preset <name>`, and `nibble <command>
--flags` against the string literals of the command line's sources. A name with a placeholder
(`<name>`, `…`) is passed over, one with `*` or `{a,b}` must match something. Not read:
CHANGELOG.md, which speaks of the past.
"""

import json
import pathlib
import re
import subprocess
import sys

FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.M | re.S)
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
LINK = re.compile(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
WORD = re.compile(r"[\w.*{},/<>…$~+-]+")
SUFFIXES = (".md", ".h", ".cc", ".c", ".cu", ".cuh", ".py", ".sh", ".txt", ".json", ".cmake")
SUFFIXES += (".toml", ".yaml", ".yml", ".tsv", ".map", ".in")
PLACEHOLDER = re.compile(r"[<>…$~]|\.\.\.|NNNN")
GENERATED = ("build/", ".venv/", "build-")  # made by make, absent in a fresh clone
CONTINUED = re.compile(r"\\\n\s*")


class Project:
    """What exists: paths, make targets, presets, words of the command line."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.top = {p.name for p in root.iterdir()}
        makefile = self._read("Makefile")
        self.targets = set(re.findall(r"^([a-z][\w-]*)\s*:(?!=)", makefile, re.M))
        presets = json.loads(self._read("CMakePresets.json") or "{}")
        self.presets = {p["name"] for p in presets.get("configurePresets", [])}
        sources = "\n".join(
            p.read_text(errors="replace") for p in sorted(root.glob("frontends/cli/*.[ch]*"))
        )
        literals = re.findall(r'"((?:[^"\\\n]|\\.)*)"', sources)
        self.cli_words = set(literals)
        self.cli_flags = {flag for text in literals for flag in re.findall(r"--[a-z][\w-]*", text)}

    def _read(self, name: str) -> str:
        path = self.root / name
        return path.read_text() if path.is_file() else ""

    def has_path(self, name: str, beside: pathlib.Path) -> bool:
        """Whether a path exists at the root, under src/ or include/, or beside the document."""
        for start in (self.root, self.root / "src", self.root / "include", beside):
            for variant in braces(name):
                pattern = variant.rstrip("/")
                exists = (start / pattern).exists()
                if not exists and not ("*" in pattern and any(start.glob(pattern))):
                    break
            else:
                return True
        return False


def braces(name: str) -> list[str]:
    """'a.{h,cc}' → ['a.h', 'a.cc']."""
    match = re.search(r"\{([^{}]*)\}", name)
    if not match:
        return [name]
    parts = match.group(1).split(",")
    return [v for p in parts for v in braces(name[: match.start()] + p + name[match.end() :])]


def code_parts(text: str) -> tuple[list[str], list[str], str]:
    """Code blocks, code spans, and the prose without its code blocks."""
    blocks = [match.group(0).split("\n", 1)[1].rsplit("\n", 1)[0] for match in FENCE.finditer(text)]
    prose = FENCE.sub("", text)
    return blocks, [match.group(2) for match in SPAN.finditer(prose)], prose


def looks_like_path(word: str, project: Project) -> bool:
    if PLACEHOLDER.search(word) or word.startswith(("/", "-", ".venv", *GENERATED)):
        return False
    if "/" not in word:
        return word.endswith(".md") or (word in ("Makefile", "CMakeLists.txt"))
    first = word.split("/")[0]
    stages = {p.name for p in (project.root / "src").glob("*")} if "src" in project.top else set()
    known = first in project.top or first in stages or first == "nibble"
    # Something like `bf16/f32` is no path: a known first folder, or a file suffix, makes one.
    return known and (word.endswith(("/", *SUFFIXES)) or first in project.top - stages)


def path_errors(code: str, project: Project, beside: pathlib.Path):
    for word in WORD.findall(code):
        name = word.rstrip(".,:;")
        if looks_like_path(name, project) and not project.has_path(name, beside):
            yield f"no such path: {name}"


def command_errors(code: str, project: Project):
    """Checks every line of a code span or block as a shell command."""
    for line in CONTINUED.sub(" ", code).splitlines():
        line = line.split(" # ")[0]
        for target in re.findall(r"(?:^|[\s;&|(])make\s+([a-z][\w-]*)", line):
            if target not in project.targets:
                yield f"no such target: make {target}"
        for preset in re.findall(r"cmake --preset[= ]([\w-]+)", line):
            if preset not in project.presets:
                yield f"no such preset: {preset}"
        command = re.match(r"\s*(?:\$ )?(?:\./)?(?:build/)?nibble\s+([a-z][\w-]*)(.*)", line)
        if command and not PLACEHOLDER.search(command.group(1)):
            if command.group(1) not in project.cli_words:
                yield f"no such command: nibble {command.group(1)}"
                continue
            for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", command.group(2)):
                if flag not in project.cli_flags:
                    yield f"no such option: nibble {command.group(1)} {flag}"


def errors(path: pathlib.Path, project: Project):
    """Every dangling name of one document, as a line of text."""
    blocks, spans, prose = code_parts(path.read_text())
    for link in LINK.findall(SPAN.sub("", prose)):
        target = link.split("#")[0]
        if target and not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
            yield f"{path}: dangling link: {target}"
    for code in blocks + spans:
        for error in path_errors(code, project, path.parent):
            yield f"{path}: {error}"
        for error in command_errors(code, project):
            yield f"{path}: {error}"


def documents(root: pathlib.Path) -> list[pathlib.Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", "*.md"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [root / name for name in sorted(listing) if name != "CHANGELOG.md"]


def main() -> int:
    root = pathlib.Path(__file__).resolve().parent.parent
    project = Project(root)
    files = documents(root)
    found = [error for path in files if path.exists() for error in errors(path, project)]
    found = [line.replace(f"{root}/", "") for line in found]
    print("\n".join(found) if found else f"docs: {len(files)} files, clean")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
