"""The list of files that a report writes is complete, and names no others."""

from codi_tracing.analysis.io.written_files import FIGURE_NAMES, written_by_report
from codi_tracing.analysis.report.catalogue import FIGURES


def test_every_figure_of_a_report_is_listed_and_no_other():
    assert sorted(FIGURE_NAMES) == sorted(FIGURES)


def test_a_report_writes_nothing_that_is_not_listed(finished_run, finished_report):
    of_run = {path.relative_to(finished_run) for path in finished_run.rglob("*") if path.is_file()}
    of_report = {path.relative_to(finished_report) for path in finished_report.rglob("*") if path.is_file()} - of_run
    listed = {path.relative_to(finished_report) for path in written_by_report(finished_report)}
    assert len(of_report) > 30
    assert of_report - listed == set()
