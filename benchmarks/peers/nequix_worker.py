"""nequix in the size of its mp-1 model, random weights, as a worker; see `protocol.py`."""

import equinox
import jax
import jraph
import numpy as np
from nequix.data import atomic_numbers_to_indices, dict_to_graphstuple, preprocess_graph
from nequix.model import Nequix
from protocol import Model, Step, serve

PACKAGES = ("nequix", "jax", "jaxlib", "e3nn-jax", "equinox", "numpy")
SPECIES = [*range(1, 84), *range(89, 95)]
CUTOFF = 6.0  # Å


def build(task):
    if task["what"] != "inference":
        raise ValueError("only its inference is measured here")
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
    return Model(PACKAGES, count, device, lambda frames: inference(model, frames))


def inference(model, frames):
    indices = atomic_numbers_to_indices(SPECIES)
    graph = dict_to_graphstuple(preprocess_graph(frames[0], indices, CUTOFF, targets=False))
    n_atoms, n_edges = int(graph.n_node[0]), int(graph.n_edge[0])
    padded = jraph.pad_with_graphs(graph, n_node=n_atoms + 1, n_edge=n_edges + 1, n_graph=2)
    padded = jax.tree.map(lambda x: jax.device_put(np.asarray(x)), padded)
    predict = equinox.filter_jit(model)

    def call():
        return jax.block_until_ready(predict(padded))[1]

    return Step(call, {"edges": n_edges})


if __name__ == "__main__":
    serve(build)
