"""The report: tables, figures and one offline page, made from records alone. Never imports torch."""

from harness.report.qualitative import Panel
from harness.report.write import write_report

__all__ = ["Panel", "write_report"]
