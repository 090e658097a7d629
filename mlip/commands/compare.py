"""`mlip compare`: put training runs side by side: errors, cost, settings that differ."""

from pathlib import Path

from mlip.report.compare import compare as put_side_by_side
from mlip.report.compare import report_comparison
from mlip.report.page import require_place
from mlip.screen import comparison_table, print_to_screen


def describe(parser):
    parser.add_argument("runs", nargs="+", metavar="run", help="folders of training runs")
    parser.add_argument(
        "--out", default="comparison", help="folder for report.html and report.json"
    )


def run(arguments):
    require_place(arguments.out, "comparison")
    names, rows, reports = put_side_by_side(arguments.runs)
    print_to_screen(comparison_table(names, rows))
    report_comparison(arguments.out, names, rows, reports)
    print(f"the report is {Path(arguments.out) / 'report.html'}")
