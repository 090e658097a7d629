"""`mlip report`: write the report of a training run again, or of one that was stopped."""

from pathlib import Path

from mlip.programs import keep_compiled_programs
from mlip.report.fit import report_training
from mlip.runtime import use_all_cores


def describe(parser):
    parser.add_argument("folder", metavar="run", help="folder of a training run")


def run(arguments):
    use_all_cores()
    keep_compiled_programs()
    report_training(arguments.folder)
    print(f"the report is {Path(arguments.folder) / 'report.html'}")
