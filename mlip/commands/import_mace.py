"""`mlip import-mace`: turn a trained MACE model of mace-torch into a model file."""

from mlip.commands.overwriting import add_overwrite, refuse_unless_overwriting
from mlip.model.file import save_model
from mlip.model.mace.from_torch import read_mace


def describe(parser):
    parser.add_argument("model", help=".model file of mace-torch; a pickle, so only from a friend")
    parser.add_argument("out", help="model.safetensors to write")
    add_overwrite(parser)
    parser.add_argument("--head", help="which head, where the model has several")
    parser.add_argument("--dtype", help="float32 or float64; the model's own if not given")


def run(arguments):
    refuse_unless_overwriting(arguments.out, arguments)
    potential = read_mace(arguments.model, arguments.head, arguments.dtype)
    save_model(potential, arguments.out)
    print(
        f"wrote {arguments.out}: {potential.n_parameters} parameters in {potential.dtype}, "
        f"{len(potential.species)} species"
    )
