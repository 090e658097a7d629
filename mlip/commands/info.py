"""`mlip info`: print what a model file holds, and the memory that it would take."""

import json

from mlip.model.file import load_model
from mlip.programs import keep_compiled_programs
from mlip.screen import card, memory_lines, print_to_screen


def describe(parser):
    parser.add_argument("model", help="model.safetensors")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--atoms", type=int, help="predict the memory for so many atoms")
    parser.add_argument(
        "--density", type=float, default=0.1, help="atoms per Å³ for --atoms; 0.1 if not given"
    )


def run(arguments):
    potential = load_model(arguments.model)
    table = card(potential)
    if arguments.atoms is not None:
        from mlip.training.estimate import memory

        keep_compiled_programs()
        needs = memory(potential, arguments.atoms, arguments.density)
        table |= needs if arguments.json else memory_lines(needs)
    if arguments.json:
        print(json.dumps(table, indent=1))
    else:
        print_to_screen(table)
