"""`mlip evaluate`: measure a potential's errors on labelled frames."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from mlip import config as settings
from mlip.data.checks.doctor import check
from mlip.data.dataset import read
from mlip.data.labels import LabelKeys
from mlip.files import atomic_write
from mlip.model.file import load_model
from mlip.model.fold import fold
from mlip.programs import keep_compiled_programs
from mlip.report.figures import write_parity
from mlip.report.fit import report_evaluation
from mlip.report.page import require_place
from mlip.runtime import use_all_cores
from mlip.screen import metrics_table, print_to_screen
from mlip.training.evaluation import metrics, parity


def describe(parser):
    parser.add_argument("model", help="model.safetensors of a run")
    parser.add_argument("data", help="file or folder of frames with labels")
    parser.add_argument("--json", help="write the errors to this file")
    parser.add_argument("--plots", help="write parity plots to this folder, as PNG")
    parser.add_argument(
        "--out", default="evaluation", help="folder for report.html and report.json"
    )
    parser.add_argument("--dtype", help="float32 or float64; as trained if not given")
    parser.add_argument(
        "--unfolded", action="store_true", help="compute with the network itself, slower"
    )
    parser.add_argument(
        "--probe",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="try dimers, symmetries and dynamics for the report, half a minute (default True)",
    )
    settings.add_flags(parser, LabelKeys, "keys")


def run(arguments):
    require_place(arguments.out, "evaluation")
    use_all_cores()
    keep_compiled_programs()
    potential = load_model(arguments.model, arguments.dtype)
    keys = settings.from_flags(LabelKeys, arguments)
    # What the model predicts besides energies is read, and compared by the network as it is.
    predicted = potential.model.quantities
    left = [name for name in predicted if getattr(arguments, f"{name}_key") is None]
    asked = {f"{name}_key": "auto" for name in left}
    keys = replace(keys, **asked)
    structures = read(arguments.data, keys)
    looked = check(arguments.data, keys, potential.cutoff, e0=None)
    used = potential
    for structure in structures:
        potential.species_of(structure)  # an unknown element is named here, with all that are known
    if not arguments.unfolded and not predicted:
        present = {int(z) for structure in structures for z in structure.numbers}
        used = fold(potential, present.intersection(potential.species) or None)
    predictions = used.predict(structures)
    found = parity(structures, predictions)
    errors = metrics(found)
    print_to_screen(metrics_table(errors, f"{arguments.model} on {arguments.data}"))
    if arguments.json:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(errors, indent=1) + "\n")
    if arguments.plots:
        write_parity(found, arguments.plots)
    report_evaluation(
        arguments.out, arguments.model, looked, potential, predictions, arguments.probe
    )
    print(f"the report is {Path(arguments.out) / 'report.html'}")
