"""`mlip check`: look a data set over before training on it."""

import json

from mlip import config as settings
from mlip.commands.overwriting import add_overwrite, refuse_unless_overwriting
from mlip.data.checks.doctor import check as look
from mlip.data.checks.doctor import mend
from mlip.data.checks.findings import error_text
from mlip.data.labels import LabelKeys
from mlip.files import atomic_write
from mlip.screen import findings_table, print_to_screen, summary_table


def describe(parser):
    parser.add_argument("data", help="file or folder of frames")
    parser.add_argument("--against", help="another file that must not share frames with it")
    parser.add_argument("--fix", metavar="OUT", help="write what can be mended to this file")
    add_overwrite(parser)
    parser.add_argument("--json", help="write summary and findings to this file")
    parser.add_argument("--model", help="compare the stress with this trained potential")
    parser.add_argument("--cutoff", type=float, help="Å; 5.0, or the model's, if not given")
    parser.add_argument(
        "--e0", default="auto", help='as in train: auto, fit, zero, a file, "H=-13.6, O=-2043.2"'
    )
    settings.add_flags(parser, LabelKeys, "keys")


def run(arguments):
    for path in filter(None, (arguments.fix, arguments.json)):
        refuse_unless_overwriting(path, arguments)
    keys, cutoff, predict = settings.from_flags(LabelKeys, arguments), arguments.cutoff, None
    if arguments.model:
        from mlip.model.file import load_model

        potential = load_model(arguments.model, "float64")
        cutoff = potential.cutoff if cutoff is None else cutoff
        predict = potential.predict
    report = look(
        arguments.data,
        keys,
        5.0 if cutoff is None else cutoff,
        e0=arguments.e0,
        against=arguments.against,
        predict=predict,
    )
    if report.structures:
        print_to_screen(summary_table(report.summary))
    print_to_screen(findings_table(report))
    if arguments.json:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(report.table(), indent=1) + "\n", encoding="utf-8")
    if arguments.fix:
        print("\n".join(mend(report, arguments.fix)))
    elif errors := report.graded("error"):
        raise ValueError(error_text(arguments.data, errors))
