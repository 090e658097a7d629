"""`mlip quickstart`: train, evaluate and simulate ethanol with the data inside the package."""

from pathlib import Path

from mlip.quickstart import run_quickstart
from mlip.runtime import use_all_cores


def describe(parser):
    parser.add_argument("--out", default="mlip_quickstart", help="folder to write")
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="training time; 3 minutes by default"
    )


def run(arguments):
    use_all_cores()
    run_quickstart(Path(arguments.out), arguments.minutes)
