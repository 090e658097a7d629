"""`mlip md`: simulate molecular dynamics."""

import time
from pathlib import Path

from mlip import config as settings
from mlip.model.file import load_model
from mlip.report.dynamics import report_dynamics
from mlip.report.page import require_place
from mlip.runtime import Stop, use_all_cores
from mlip.screen import DynamicsScreen, dynamics_table, print_to_screen
from mlip.simulation.dynamics import run as simulate
from mlip.simulation.setup import DynamicsConfig, read_starts


def describe(parser):
    parser.add_argument("model", help="model.safetensors of a run")
    parser.add_argument("start", help="file of one or several structures, each a system")
    parser.add_argument("--config", help="TOML file with settings; flags override it")
    parser.add_argument("--out", default="md", help="folder to write (default md)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument(
        "--unfolded", action="store_true", help="compute with the network itself, slower"
    )
    settings.add_flags(parser, DynamicsConfig)


def run(arguments):
    base = settings.read_toml(arguments.config) if arguments.config else {}
    config = settings.from_flags(DynamicsConfig, arguments, base)
    require_place(arguments.out, "simulation")
    use_all_cores()
    starts = read_starts(arguments.start)
    potential = load_model(arguments.model)
    begin = time.monotonic()
    with DynamicsScreen(config) as screen:
        try:
            trajectories = simulate(
                potential,
                starts,
                config,
                out=arguments.out,
                resume=arguments.resume,
                show=screen,
                folded=not arguments.unfolded,
            )
            status = 3 if any(trajectory.stopped for trajectory in trajectories) else 0
        except Stop as stop:
            trajectories, status = screen.trajectories, 128 + stop.number
    if not trajectories:
        return status
    print_to_screen(dynamics_table(trajectories))
    print("writing the report", flush=True)
    seconds = time.monotonic() - begin
    report_dynamics(arguments.out, arguments.start, potential, config, trajectories, seconds)
    print(f"the report is {Path(arguments.out) / 'report.html'}")
    return status
