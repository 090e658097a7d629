"""The command line: `mlip train|check|evaluate|md|relax|…`, each a module of `mlip.commands`."""

import argparse
import difflib
import errno
import importlib
import sys

COMMANDS = {
    "train": "Train a potential on DFT energies, forces and stresses",
    "check": "Look a data set over before training on it",
    "evaluate": "Measure a potential's errors on labelled frames",
    "report": "Write the report of a training run again, or of one that was stopped",
    "compare": "Put training runs side by side: errors, cost, settings that differ",
    "md": "Simulate molecular dynamics",
    "relax": "Relax structures, and their cells if wanted; exit status 3 if one does not converge",
    "info": "Print what a model file holds, and the memory that it would take",
    "init": "Write an untrained model, for tests and benchmarks",
    "serve": "Give energies and forces to an engine such as i-PI through a socket",
    "import-mace": "Turn a trained MACE model of mace-torch into a model file",
    "selftest": "Compare compiled parts of the network with NumPy on this machine",
    "quickstart": "Train, evaluate and simulate ethanol with the data inside the package",
}
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
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # also while modules are imported
        return 130


def _run(arguments):
    parser = build_parser(*[word for word in arguments if word in COMMANDS][:1])
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_unknown(unknown[0], known.parser))
    try:
        if known.model_class:
            from mlip.model.contract import import_class

            import_class(known.model_class, for_all_files=True)
        return known.run(known) or 0
    except (ValueError, OSError, FloatingPointError, RuntimeError, MemoryError) as error:
        if known.debug:
            raise
        print(f"mlip {known.command}: {_message(error)}", file=sys.stderr)
        return 2


def _message(error):
    """What an error says; of those of the system and of memory, with the remedy."""
    if isinstance(error, OSError) and error.strerror:
        remedy = REMEDIES.get(error.errno, "check the path")
        path = error.filename2 or error.filename or "writing a file"
        return f"{path}: {error.strerror}; {remedy}"
    if isinstance(error, MemoryError) and ";" not in str(error):
        return f"the memory does not suffice ({error}); take smaller batches, systems or networks"
    return error


def build_parser(*chosen):
    """The parser of all commands; only the chosen ones know their flags, for imports take long."""
    parser = argparse.ArgumentParser(
        prog="mlip", description="Equivariant interatomic potentials in JAX", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        text = "class of a network of your own, as my_package.my_module:MyNetwork"
        command.add_argument("--model-class", metavar="CLASS", help=text)
        if name in chosen:
            module = importlib.import_module(f"mlip.commands.{name.replace('-', '_')}")
            module.describe(command)
            command.set_defaults(run=module.run, parser=command)
    return parser


def _unknown(argument, parser):
    flag = argument.partition("=")[0]
    flags = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(flag, flags, n=1)
    if not flag.startswith("-"):
        return f"unexpected argument {argument!r}; see mlip {parser.prog.split()[-1]} --help"
    return f"unknown option {flag}; " + (f"did you mean {near[0]}?" if near else "see --help")


if __name__ == "__main__":
    sys.exit(main())
