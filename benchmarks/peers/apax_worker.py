"""apax with its default GMNN, random weights, as a worker; see `protocol.py`."""

import apax  # noqa: F401  sets jax to 64 bit
import jax
import jax.numpy as jnp
import numpy as np
from apax.config.model_config import GMNNConfig
from protocol import Model, Step, serve
from vesin import NeighborList

PACKAGES = ("apax", "jax", "jaxlib", "vesin", "numpy")
N_SPECIES = 119


def build(task):
    if task["what"] != "inference":
        raise ValueError("only its inference is measured here")
    config = GMNNConfig()
    builder = config.get_builder()(config.model_dump(), n_species=N_SPECIES)
    one = model_of(builder, np.eye(3))
    pair = jnp.array([[0, 1], [1, 0]])
    rows = jnp.zeros((2, 3))
    weights = one.init(
        jax.random.key(0), rows.at[1].set(0.5), jnp.array([1, 6]), pair, jnp.eye(3), rows
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(weights))
    cutoff = config.basis.r_max
    device = jax.devices()[0].device_kind
    return Model(
        PACKAGES, count, device, lambda frames: inference(builder, weights, cutoff, frames[0])
    )


def model_of(builder, box):
    return builder.build_energy_derivative_model(apply_mask=True, init_box=box)


def inference(builder, weights, cutoff, atoms):
    """Fractional positions and a list of neighbours, as their calculator has them."""
    box = atoms.cell.array
    receivers, senders, shifts = NeighborList(cutoff=cutoff, full_list=True).compute(
        points=atoms.positions, box=box, periodic=bool(atoms.pbc.any()), quantities="ijS"
    )
    inputs = jax.device_put(
        (
            atoms.cell.scaled_positions(atoms.positions),
            atoms.numbers,
            np.array([receivers, senders], np.int32),
            box.T,
            shifts @ box,
        )
    )
    predict = jax.jit(model_of(builder, box.T).apply)

    def call():
        return jax.block_until_ready(predict(weights, *inputs))["forces"]

    return Step(call, {"edges": len(receivers)})


if __name__ == "__main__":
    serve(build)
