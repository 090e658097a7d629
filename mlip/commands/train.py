"""`mlip train`: train a potential on DFT energies, forces and stresses."""

from dataclasses import fields
from pathlib import Path

from mlip import config as settings
from mlip.model.mace.model import NetworkConfig
from mlip.model.terms import TermsConfig
from mlip.report.fit import report_training
from mlip.runtime import Stop, use_all_cores
from mlip.screen import Screen
from mlip.training.finetune import adopt_network
from mlip.training.loop import train as run_training
from mlip.training.setup import TrainConfig, read_table


def describe(parser):
    parser.add_argument("config", nargs="?", help="TOML file with settings; flags override it")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out where it stopped"
    )
    settings.add_flags(parser, TrainConfig)


def run(arguments):
    use_all_cores()
    resumed = (arguments.out or "run") if arguments.resume else None
    base = read_table(arguments.config, resumed)
    if arguments.model_class:
        section = base.get("model", {})
        if not isinstance(section, dict):
            raise ValueError(f"model is {section!r}; it is a section, written [model]")
        base["model"] = {**section, "class": arguments.model_class}
    config = settings.from_flags(TrainConfig, arguments, base)
    names = [f.name for cls in (NetworkConfig, TermsConfig) for f in fields(cls)]
    flags = (name for name in names if getattr(arguments, name) is not None)
    sections = (base.get(section, {}) for section in ("network", "terms"))
    config = adopt_network(config, {*flags, *(name for table in sections for name in table)})
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
