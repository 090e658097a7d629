"""nequix in the size of its mp-1 model, random weights, as a worker; see `protocol.py`."""

import equinox
import jax
import jraph
import numpy as np
import optax
from nequix.data import atomic_numbers_to_indices, dict_to_graphstuple, preprocess_graph
from nequix.model import Nequix
from protocol import Model, Step, serve

PACKAGES = ("nequix", "jax", "jaxlib", "e3nn-jax", "equinox", "optax", "numpy")
SPECIES = [*range(1, 84), *range(89, 95)]
CUTOFF = 6.0  # Å


def build(task):
    prepare = {"inference": inference, "training": training}.get(task["what"])
    if prepare is None:
        raise ValueError("only its inference and its training steps are measured here")
    model = Nequix(
        jax.random.key(0),
        n_species=len(SPECIES),
        cutoff=CUTOFF,
        lmax=3,
        hidden_irreps="128x0e + 64x1o + 32x2e + 32x3o",
        n_layers=4,
        radial_basis_size=8,
        radial_mlp_size=64,
        radial_mlp_layers=2,
        radial_polynomial_p=6.0,
        mlp_init_scale=4.0,
        index_weights=False,
        layer_norm=True,
        avg_n_neighbors=task["average_neighbors"],
    )
    leaves = jax.tree.leaves(equinox.filter(model, equinox.is_array))
    count = sum(leaf.size for leaf in leaves)
    device = jax.devices()[0].device_kind
    return Model(PACKAGES, count, device, lambda frames: prepare(model, frames))


def batch_of(frames, targets):
    """The frames as one padded batch on the device, and its number of edges."""
    indices = atomic_numbers_to_indices(SPECIES)
    graphs = jraph.batch_np(
        [dict_to_graphstuple(preprocess_graph(atoms, indices, CUTOFF, targets)) for atoms in frames]
    )
    n_atoms, n_edges = int(graphs.n_node.sum()), int(graphs.n_edge.sum())
    batch = jraph.pad_with_graphs(graphs, n_atoms + 1, n_edges + 1, len(frames) + 1)
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x)), batch), n_edges


def inference(model, frames):
    batch, n_edges = batch_of(frames[:1], targets=False)
    predict = equinox.filter_jit(model)

    def call():
        return jax.block_until_ready(predict(batch))[1]

    return Step(call, {"edges": n_edges})


def training(model, frames):
    """A step as its trainer takes for molecules, but with AMSGrad and squared errors as the others.

    Its own loss asks for stress, which molecules have not.
    """
    batch, n_edges = batch_of(frames, targets=True)
    optimizer = optax.chain(optax.clip_by_global_norm(100.0), optax.amsgrad(0.001))
    parameters, static = equinox.partition(model, equinox.is_array)

    def loss(parameters, batch):
        energy, forces, _ = equinox.combine(parameters, static)(batch)
        energy_error = (energy - batch.globals["energy"]) / jax.numpy.maximum(batch.n_node, 1)
        forces_error = ((forces - batch.nodes["forces"]) ** 2).mean(axis=1)
        by_energy = (energy_error**2).mean(where=jraph.get_graph_padding_mask(batch))
        return by_energy + 100 * forces_error.mean(where=jraph.get_node_padding_mask(batch))

    @jax.jit
    def train_step(state, batch):
        parameters, moments, average = state
        value, gradient = jax.value_and_grad(loss)(parameters, batch)
        updates, moments = optimizer.update(gradient, moments, parameters)
        parameters = optax.apply_updates(parameters, updates)
        return (parameters, moments, optax.incremental_update(parameters, average, 0.005)), value

    state = parameters, optimizer.init(parameters), parameters

    def call():
        nonlocal state
        state, value = train_step(state, batch)
        jax.block_until_ready(state)
        return value

    return Step(call, {"edges": n_edges})


if __name__ == "__main__":
    serve(build)
