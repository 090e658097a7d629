"""The command line: `mlip train|check|evaluate|md|relax|…`, each command a call or two."""

import argparse
import dataclasses
import difflib
import errno
import json
import os
import sys
import time
from pathlib import Path

from mlip import config as settings

FULL = "free some space, or write to another disk"
FORBIDDEN = "choose a place where you may write, and files that you may read"
REMEDIES = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EACCES: FORBIDDEN,
    errno.EPERM: FORBIDDEN,
    errno.EROFS: FORBIDDEN,
    errno.EEXIST: "it is a file where a folder is needed; give another path",
    errno.EISDIR: "give a file instead of a folder",
    errno.ENOTDIR: "a part of the path is a file; give another",
    errno.ENAMETOOLONG: "give a shorter name",
}


def main(arguments=None):
    """Run one command; returns the exit status, 2 for input that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Before jax starts: XLA takes its own flags in a kept program for those of a foreign processor,
    # and warns of crashes.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = build_parser(next((word for word in arguments if word in COMMANDS), None))
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_unknown(unknown[0], known.parser))
    try:
        return known.run(known) or 0
    except (ValueError, OSError, FloatingPointError, RuntimeError, MemoryError) as error:
        if known.debug:
            raise
        print(f"mlip {known.command}: {_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _message(error):
    """What an error says; of those of the system and of memory, with the remedy."""
    if isinstance(error, OSError) and error.strerror:
        remedy = REMEDIES.get(error.errno, "check the path")
        path = error.filename2 or error.filename or "writing a file"
        return f"{path}: {error.strerror}; {remedy}"
    if isinstance(error, MemoryError) and ";" not in str(error):
        return f"the memory does not suffice ({error}); take smaller batches, systems or networks"
    return error


def build_parser(only=None):
    """The parser of all commands.

    Args:
      only: the command that is given its flags, since their definitions take seconds to import;
        all of them if None.
    """
    parser = argparse.ArgumentParser(
        prog="mlip", description="Equivariant interatomic potentials in JAX", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (describe, run) in COMMANDS.items():
        text = run.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if only in (None, name):
            describe(command)
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        command.set_defaults(run=run, parser=command)
    return parser


def _unknown(argument, parser):
    flag = argument.partition("=")[0]
    flags = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(flag, flags, n=1)
    if not flag.startswith("-"):
        return f"unexpected argument {argument!r}; see mlip {parser.prog.split()[-1]} --help"
    return f"unknown option {flag}; " + (f"did you mean {near[0]}?" if near else "see --help")


def _add_overwrite(parser):
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def _refuse_existing(path, arguments):
    from mlip.files import refuse_existing

    if not arguments.overwrite:
        refuse_existing(path, "give another name, or --overwrite")


def describe_train(parser):
    from mlip.training.setup import TrainConfig

    parser.add_argument("config", nargs="?", help="TOML file with settings; flags override it")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out where it stopped"
    )
    settings.add_flags(parser, TrainConfig)


def train(arguments):
    """Train a potential on DFT energies, forces and stresses."""
    from mlip.report.fit import report_training
    from mlip.runtime import Stop
    from mlip.screen import Screen
    from mlip.training.loop import train as run_training
    from mlip.training.setup import TrainConfig, read_table

    resumed = (arguments.out or "run") if arguments.resume else None
    base = read_table(arguments.config, resumed)
    config = settings.from_flags(TrainConfig, arguments, base)
    screen = Screen()
    with screen:
        try:
            run_training(config, resume=arguments.resume, show=screen)
        except Stop as stop:
            return 128 + stop.number
    screen.line(f"the best potential is {Path(config.out) / 'model.safetensors'}")
    report_training(config.out)
    screen.line(f"the report is {Path(config.out) / 'report.html'}")
    return 0


def describe_check(parser):
    from mlip.data.labels import LabelKeys

    parser.add_argument("data", help="file or folder of frames")
    parser.add_argument("--against", help="another file that must not share frames with it")
    parser.add_argument("--fix", metavar="OUT", help="write what can be mended to this file")
    _add_overwrite(parser)
    parser.add_argument("--json", help="write summary and findings to this file")
    parser.add_argument("--model", help="compare the stress with this trained potential")
    parser.add_argument("--cutoff", type=float, help="Å; 5.0, or the model's, if not given")
    parser.add_argument(
        "--e0", default="auto", help='as in train: auto, fit, zero, a file, "H=-13.6, O=-2043.2"'
    )
    settings.add_flags(parser, LabelKeys, "keys")


def check(arguments):
    """Look a data set over before training on it."""
    from mlip.data.checks.doctor import check as look
    from mlip.data.checks.doctor import mend
    from mlip.data.checks.findings import error_text
    from mlip.data.labels import LabelKeys
    from mlip.files import atomic_write
    from mlip.screen import findings_table, print_to_screen, summary_table

    for path in filter(None, (arguments.fix, arguments.json)):
        _refuse_existing(path, arguments)
    keys, cutoff, predict = settings.from_flags(LabelKeys, arguments), arguments.cutoff, None
    if arguments.model:
        from mlip.training.checkpoint import load_model

        potential = load_model(arguments.model, "float64")
        cutoff = potential.config.cutoff if cutoff is None else cutoff
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


def describe_evaluate(parser):
    from mlip.data.labels import LabelKeys

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
    settings.add_flags(parser, LabelKeys, "keys")


def evaluate(arguments):
    """Measure a potential's errors on labelled frames."""
    from mlip.data.dataset import read
    from mlip.data.labels import LabelKeys
    from mlip.deploy.fold import fold
    from mlip.files import atomic_write
    from mlip.report.figures import write_parity
    from mlip.report.fit import report_evaluation
    from mlip.report.page import require_place
    from mlip.runtime import keep_compiled_programs, use_all_cores
    from mlip.screen import metrics_table, print_to_screen
    from mlip.training.checkpoint import load_model
    from mlip.training.evaluation import metrics, parity

    require_place(arguments.out, "evaluation")
    use_all_cores()
    keep_compiled_programs()
    potential = load_model(arguments.model, arguments.dtype)
    structures = read(arguments.data, settings.from_flags(LabelKeys, arguments))
    used = potential
    if not arguments.unfolded:
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
        arguments.out, arguments.model, arguments.data, potential, structures, predictions
    )
    print(f"the report is {Path(arguments.out) / 'report.html'}")


def describe_md(parser):
    from mlip.simulation.setup import DynamicsConfig

    parser.add_argument("model", help="model.safetensors of a run")
    parser.add_argument("start", help="file of one or several structures, each a system")
    parser.add_argument("--config", help="TOML file with settings; flags override it")
    parser.add_argument("--out", default="md", help="folder to write (default md)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument(
        "--unfolded", action="store_true", help="compute with the network itself, slower"
    )
    settings.add_flags(parser, DynamicsConfig)


def md(arguments):
    """Simulate molecular dynamics."""
    from mlip.report.dynamics import report_dynamics
    from mlip.report.page import require_place
    from mlip.runtime import Stop, use_all_cores
    from mlip.screen import DynamicsScreen, dynamics_table, print_to_screen
    from mlip.simulation.dynamics import run
    from mlip.simulation.setup import DynamicsConfig, read_starts
    from mlip.training.checkpoint import load_model

    base = settings.read_toml(arguments.config) if arguments.config else {}
    config = settings.from_flags(DynamicsConfig, arguments, base)
    require_place(arguments.out, "simulation")
    use_all_cores()
    starts = read_starts(arguments.start)
    potential = load_model(arguments.model)
    begin = time.monotonic()
    with DynamicsScreen(config) as screen:
        try:
            trajectories = run(
                potential,
                starts,
                config,
                out=arguments.out,
                resume=arguments.resume,
                show=screen,
                folded=not arguments.unfolded,
            )
        except Stop as stop:
            return 128 + stop.number
    print_to_screen(dynamics_table(trajectories))
    seconds = time.monotonic() - begin
    report_dynamics(arguments.out, arguments.start, potential, config, trajectories, seconds)
    print(f"the report is {Path(arguments.out) / 'report.html'}")
    return 3 if any(trajectory.stopped for trajectory in trajectories) else 0


def describe_relax(parser):
    from mlip.simulation.relaxed import RelaxationConfig

    parser.add_argument("model", help="model.safetensors of a run")
    parser.add_argument("starts", nargs="+", metavar="start", help="files; each frame is relaxed")
    parser.add_argument("--out", default="relaxed.xyz", help="file for the final structures")
    parser.add_argument("--trajectory", help="file for every step, one for each structure")
    _add_overwrite(parser)
    parser.add_argument(
        "--unfolded", action="store_true", help="compute with the network itself, slower"
    )
    settings.add_flags(parser, RelaxationConfig)


def relax(arguments):
    """Relax structures, and their cells if wanted; exit status 3 if one does not converge."""
    from mlip.runtime import Stop, use_all_cores
    from mlip.screen import RelaxationScreen, print_to_screen, relaxation_table
    from mlip.simulation.relaxation import RelaxationConfig
    from mlip.simulation.relaxation import relax as run_relaxation
    from mlip.simulation.setup import read_starts
    from mlip.training.checkpoint import load_model

    use_all_cores()
    config = settings.from_flags(RelaxationConfig, arguments)
    starts = [start for path in arguments.starts for start in read_starts(path)]
    with RelaxationScreen() as screen:
        try:
            results = run_relaxation(
                load_model(arguments.model),
                starts,
                config,
                out=arguments.out,
                trajectory=arguments.trajectory,
                overwrite=arguments.overwrite,
                show=screen,
                folded=not arguments.unfolded,
            )
        except Stop as stop:
            return 128 + stop.number
    print_to_screen(relaxation_table(results))
    print(f"wrote {arguments.out}")
    return 0 if all(result.converged for result in results) else 3


def describe_report(parser):
    parser.add_argument("folder", metavar="run", help="folder of a training run")


def report(arguments):
    """Write the report of a training run again, or of one that was stopped."""
    from mlip.report.fit import report_training
    from mlip.runtime import keep_compiled_programs

    keep_compiled_programs()
    report_training(arguments.folder)
    print(f"the report is {Path(arguments.folder) / 'report.html'}")


def describe_compare(parser):
    parser.add_argument("runs", nargs="+", metavar="run", help="folders of training runs")
    parser.add_argument(
        "--out", default="comparison", help="folder for report.html and report.json"
    )


def compare(arguments):
    """Put training runs side by side: errors, cost, settings that differ."""
    from mlip.report.compare import compare as put_side_by_side
    from mlip.report.compare import report_comparison
    from mlip.report.page import require_place
    from mlip.screen import comparison_table, print_to_screen

    require_place(arguments.out, "comparison")
    names, rows, reports = put_side_by_side(arguments.runs)
    print_to_screen(comparison_table(names, rows))
    report_comparison(arguments.out, names, rows, reports)
    print(f"the report is {Path(arguments.out) / 'report.html'}")


def describe_info(parser):
    parser.add_argument("model", help="model.safetensors")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--atoms", type=int, help="predict the memory for so many atoms")
    parser.add_argument(
        "--density", type=float, default=0.1, help="atoms per Å³ for --atoms; 0.1 if not given"
    )


def info(arguments):
    """Print what a model file holds, and the memory that it would take."""
    from mlip.runtime import keep_compiled_programs
    from mlip.screen import card, memory_lines, print_to_screen
    from mlip.training.checkpoint import load_model

    potential = load_model(arguments.model)
    table = card(potential)
    if arguments.atoms is not None:
        from mlip.deploy.estimate import memory

        keep_compiled_programs()
        needs = memory(potential, arguments.atoms, arguments.density)
        table |= needs if arguments.json else memory_lines(needs)
    if arguments.json:
        print(json.dumps(table, indent=1))
    else:
        print_to_screen(table)


def describe_init(parser):
    from mlip.model.network import NetworkConfig

    parser.add_argument("--species", required=True, help="elements, such as H,C,O")
    parser.add_argument("--out", default="model.safetensors", help="file to write")
    _add_overwrite(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the random parameters")
    parser.add_argument("--dtype", default="float32", help="float32 or float64")
    parser.add_argument(
        "--average-neighbors", type=float, default=15.0, help="divisor of sums over neighbours"
    )
    settings.add_flags(parser, NetworkConfig, "network")


def init(arguments):
    """Write an untrained model, for tests and benchmarks."""
    from mlip.model.network import NetworkConfig
    from mlip.model.potential import untrained
    from mlip.training.checkpoint import save_model

    _refuse_existing(arguments.out, arguments)
    potential = untrained(
        settings.from_flags(NetworkConfig, arguments),
        arguments.species.split(","),
        seed=arguments.seed,
        average_neighbors=arguments.average_neighbors,
        dtype=arguments.dtype,
    )
    save_model(dataclasses.replace(potential, training={"note": "untrained"}), arguments.out)
    print(f"wrote {arguments.out}: untrained, {potential.n_parameters} parameters")


def describe_serve(parser):
    parser.add_argument("model", help="model.safetensors")
    parser.add_argument("start", help="structure with the engine's elements in its order")
    parser.add_argument("--unixsocket", metavar="NAME", help="the engine's, at /tmp/ipi_NAME")
    parser.add_argument("--host", help="of the engine; localhost if only --port is given")
    parser.add_argument("--port", type=int, help="31415 if only --host is given")
    parser.add_argument("--dtype", help="float32 or float64; as trained if not given")
    parser.add_argument(
        "--unfolded", action="store_true", help="compute with the network itself, slower"
    )


def serve(arguments):
    """Give energies and forces to an engine such as i-PI through a socket."""
    from mlip.data.dataset import read
    from mlip.runtime import use_all_cores
    from mlip.simulation.serve import serve as run_client
    from mlip.simulation.serve import what_is_served

    use_all_cores()
    structures = read(arguments.start, keys=None)
    if len(structures) > 1:
        raise ValueError(
            f"{arguments.start} holds {len(structures)} frames; give the one that the engine was "
            "started with"
        )
    print(what_is_served(structures[0]), flush=True)
    answers = run_client(
        arguments.model,
        structures[0],
        unixsocket=arguments.unixsocket,
        host=arguments.host,
        port=arguments.port,
        dtype=arguments.dtype,
        folded=not arguments.unfolded,
    )
    print(f"the engine ended the conversation after {answers} evaluations")


def describe_import_mace(parser):
    parser.add_argument("model", help=".model file of mace-torch; a pickle, so only from a friend")
    parser.add_argument("out", help="model.safetensors to write")
    _add_overwrite(parser)
    parser.add_argument("--head", help="which head, where the model has several")
    parser.add_argument("--dtype", help="float32 or float64; the model's own if not given")


def import_mace(arguments):
    """Turn a trained MACE model of mace-torch into a model file."""
    from mlip.deploy.mace import read_mace
    from mlip.training.checkpoint import save_model

    _refuse_existing(arguments.out, arguments)
    potential = read_mace(arguments.model, arguments.head, arguments.dtype)
    save_model(potential, arguments.out)
    print(
        f"wrote {arguments.out}: {potential.n_parameters} parameters in {potential.dtype}, "
        f"{len(potential.species)} species"
    )


def selftest(arguments):
    """Compare compiled parts of the network with NumPy on this machine."""
    from mlip.screen import checks_table, print_to_screen
    from mlip.selftest import require_correct_arithmetic, run

    checks = run()
    print_to_screen(checks_table(checks))
    require_correct_arithmetic(checks)
    print("compiled arithmetic agrees with NumPy")


def describe_quickstart(parser):
    parser.add_argument("--out", default="mlip_quickstart", help="folder to write")
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="training time; 3 minutes by default"
    )


def quickstart(arguments):
    """Train, evaluate and simulate ethanol with the data inside the package."""
    from mlip.quickstart import run_quickstart

    run_quickstart(Path(arguments.out), arguments.minutes)


COMMANDS = {
    "train": (describe_train, train),
    "check": (describe_check, check),
    "evaluate": (describe_evaluate, evaluate),
    "report": (describe_report, report),
    "compare": (describe_compare, compare),
    "md": (describe_md, md),
    "relax": (describe_relax, relax),
    "info": (describe_info, info),
    "init": (describe_init, init),
    "serve": (describe_serve, serve),
    "import-mace": (describe_import_mace, import_mace),
    "selftest": (lambda parser: None, selftest),
    "quickstart": (describe_quickstart, quickstart),
}

if __name__ == "__main__":
    sys.exit(main())
