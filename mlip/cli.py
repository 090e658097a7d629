"""The command line: `mlip train|evaluate|info|init|selftest|quickstart`, each a call or two."""

import argparse
import dataclasses
import difflib
import json
import sys
from pathlib import Path

from mlip import config as settings


def main(arguments=None):
    """Run one command; returns the exit status, 2 for input that cannot be used."""
    parser = build_parser()
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_unknown(unknown[0], known.parser))
    try:
        return known.run(known) or 0
    except (ValueError, OSError, FloatingPointError, RuntimeError, MemoryError) as error:
        if known.debug:
            raise
        print(f"mlip {known.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def build_parser():
    parser = argparse.ArgumentParser(
        prog="mlip", description="Equivariant interatomic potentials in JAX", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (describe, run) in COMMANDS.items():
        text = run.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
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


def describe_train(parser):
    from mlip.training.setup import TrainConfig

    parser.add_argument("config", nargs="?", help="TOML file with settings; flags override it")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out where it stopped"
    )
    settings.add_flags(parser, TrainConfig)


def train(arguments):
    """Train a potential on DFT energies, forces and stresses."""
    from mlip.report import Screen, write_run_report
    from mlip.training.loop import Stop
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
    write_run_report(config.out)
    screen.line(f"the best potential is {Path(config.out) / 'model.safetensors'}")
    return 0


def describe_evaluate(parser):
    from mlip.data.labels import LabelKeys

    parser.add_argument("model", help="model.safetensors of a run")
    parser.add_argument("data", help="file or folder of frames with labels")
    parser.add_argument("--json", help="write the errors to this file")
    parser.add_argument("--plots", help="write parity plots to this folder")
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
    from mlip.report import metrics_table, plot_parity, print_to_screen
    from mlip.runtime import keep_compiled_programs, use_all_cores
    from mlip.training.checkpoint import load_model
    from mlip.training.evaluation import metrics, parity

    use_all_cores()
    keep_compiled_programs()
    potential = load_model(arguments.model, arguments.dtype)
    potential = potential if arguments.unfolded else fold(potential)
    structures = read(arguments.data, settings.from_flags(LabelKeys, arguments))
    found = parity(structures, potential.predict(structures))
    errors = metrics(found)
    print_to_screen(metrics_table(errors, f"{arguments.model} on {arguments.data}"))
    if arguments.json:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(errors, indent=1) + "\n")
    if arguments.plots:
        plot_parity(found, arguments.plots)


def describe_info(parser):
    parser.add_argument("model", help="model.safetensors")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--atoms", type=int, help="predict the memory for so many atoms")
    parser.add_argument(
        "--density", type=float, default=0.1, help="atoms per Å³ for --atoms; 0.1 if not given"
    )


def info(arguments):
    """Print what a model file holds, and the memory that it would take."""
    from mlip.report import card, memory_lines, print_to_screen
    from mlip.runtime import keep_compiled_programs
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

    potential = untrained(
        settings.from_flags(NetworkConfig, arguments),
        arguments.species.split(","),
        seed=arguments.seed,
        average_neighbors=arguments.average_neighbors,
        dtype=arguments.dtype,
    )
    save_model(dataclasses.replace(potential, training={"note": "untrained"}), arguments.out)
    print(f"wrote {arguments.out}: untrained, {potential.n_parameters} parameters")


def selftest(arguments):
    """Compare compiled parts of the network with NumPy on this machine."""
    from mlip.report import checks_table, print_to_screen
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
    "evaluate": (describe_evaluate, evaluate),
    "info": (describe_info, info),
    "init": (describe_init, init),
    "selftest": (lambda parser: None, selftest),
    "quickstart": (describe_quickstart, quickstart),
}

if __name__ == "__main__":
    sys.exit(main())
