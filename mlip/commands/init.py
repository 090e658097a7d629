"""`mlip init`: write an untrained model, for tests and benchmarks."""

import dataclasses

from mlip import config as settings
from mlip.commands.overwriting import add_overwrite, refuse_unless_overwriting
from mlip.model.file import save_model
from mlip.model.mace.model import NetworkConfig
from mlip.model.potential import untrained
from mlip.model.terms import TermsConfig


def describe(parser):
    parser.add_argument("--species", required=True, help="elements, such as H,C,O")
    parser.add_argument("--out", default="model.safetensors", help="file to write")
    add_overwrite(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the random parameters")
    parser.add_argument("--dtype", default="float32", help="float32 or float64")
    parser.add_argument(
        "--average-neighbors", type=float, default=15.0, help="divisor of sums over neighbours"
    )
    settings.add_flags(parser, NetworkConfig, "network")
    settings.add_flags(parser, TermsConfig, "terms")


def run(arguments):
    refuse_unless_overwriting(arguments.out, arguments)
    if arguments.model_class:
        raise ValueError(
            "--model-class names a network of your own, and mlip init writes one of ours; in "
            "Python write mlip.save(mlip.untrained(MyNetwork(), species), path)"
        )
    potential = untrained(
        settings.from_flags(NetworkConfig, arguments),
        arguments.species.split(","),
        seed=arguments.seed,
        average_neighbors=arguments.average_neighbors,
        dtype=arguments.dtype,
        terms=settings.from_flags(TermsConfig, arguments),
    )
    save_model(dataclasses.replace(potential, training={"note": "untrained"}), arguments.out)
    print(f"wrote {arguments.out}: untrained, {potential.n_parameters} parameters")
