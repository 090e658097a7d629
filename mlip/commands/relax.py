"""`mlip relax`: relax structures, and their cells if wanted."""

from mlip import config as settings
from mlip.commands.overwriting import add_overwrite
from mlip.model.file import load_model
from mlip.relaxation.relax import relax as run_relaxation
from mlip.relaxation.results import RelaxationConfig
from mlip.runtime import Stop, use_all_cores
from mlip.screen import RelaxationScreen, print_to_screen, relaxation_table
from mlip.simulation.setup import read_starts


def describe(parser):
    parser.add_argument("model", help="model.safetensors of a run")
    parser.add_argument("starts", nargs="+", metavar="start", help="files; each frame is relaxed")
    parser.add_argument("--out", default="relaxed.xyz", help="file for the final structures")
    parser.add_argument("--trajectory", help="file for every step, one for each structure")
    add_overwrite(parser)
    parser.add_argument(
        "--unfolded", action="store_true", help="compute with the network itself, slower"
    )
    settings.add_flags(parser, RelaxationConfig)


def run(arguments):
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
