"""Counting of test results, and the runner's exit code."""

import xml.etree.ElementTree as ElementTree

import run_tests

CTEST = """<testsuite>
  <testcase name="a" status="run"/>
  <testcase name="b" status="fail"><failure message="x"/></testcase>
  <testcase name="c" status="notrun"><skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/></testcase>
  <testcase name="d" status="notrun"><skipped message="Unable to find executable"/></testcase>
  <testcase name="e" status="disabled"/>
</testsuite>"""

PYTEST = """<testsuites><testsuite>
  <testcase name="a"/>
  <testcase name="b"><failure/></testcase>
  <testcase name="c"><error/></testcase>
  <testcase name="d"><skipped message="no torch"/></testcase>
</testsuite></testsuites>"""


def test_a_test_that_could_not_start_has_failed():
    counts, failures = run_tests.count_cases(ElementTree.fromstring(CTEST))
    assert str(counts) == "1 passed, 3 failed, 1 skipped"
    assert [case.get("name") for case in failures] == ["b", "d", "e"]


def test_pytest_errors_are_failures():
    counts, _ = run_tests.count_cases(ElementTree.fromstring(PYTEST))
    assert str(counts) == "1 passed, 2 failed, 1 skipped"


def test_a_missing_result_file_is_a_failure(tmp_path):
    counts, _ = run_tests.read_junit(tmp_path / "none.xml")
    assert str(counts) == "0 passed, 1 failed"


def test_the_closing_line_names_skips_only_where_there_are_any():
    assert str(run_tests.Counts(3, 0, 0) + run_tests.Counts(1, 2, 0)) == "4 passed, 2 failed"
