"""The message-passing network: edge displacements in; energies, and dipoles if wanted, out.

The mathematics is that of MACE (Batatia et al. 2022, arXiv:2206.07697), by default with its
residual interaction block, normalisation constants included, and a smaller radial network. Every
parameter starts as a standard normal number (those of the product basis divided by their count, as
in MACE); all scales are constants in the forward pass.
"""

import functools
import math

import flax.linen as nn
import jax
import numpy as np

from mlip.data.graph import Graph
from mlip.model.blocks import gather_senders, map_blocks, pair_up
from mlip.model.mace.layer import dipoles, layer_shapes, mix_degrees, pass_layer


class Network(nn.Module):
    """Energies per atom in units of the potential's scale, from edge displacements."""

    config: object  # a `NetworkConfig`
    n_species: int
    block: int | None = None  # atoms taken through a layer at a time; None takes all
    axis: str | None = None  # of the devices over which the atoms are spread
    at_once: int | None = None  # slots of a graph that is taken without blocks; None for any

    @nn.compact
    def __call__(self, graph: Graph, average_neighbors, radii):
        """Energies and features of the atoms.

        Args:
          graph: displacements decide the precision.
          average_neighbors: scalar by which the sums over neighbours are divided.
          radii: covalent radii of the species, [n_species], Å, by which distances are transformed.

        Returns:
          energies, [n_atoms]; dipole moments of the atoms, [n_atoms, 3], e·Å, or None; and layer by
          layer the invariant features, [n_atoms, channels].
        """
        config, n_species = self.config, self.n_species
        one_hot = jax.nn.one_hot(graph.species, n_species, dtype=graph.displacement.dtype)
        embedding = self.weight("embedding", (n_species, config.channels))
        features = (one_hot @ embedding / math.sqrt(n_species))[:, None]
        reach = ()
        if config.distance_transform != "none":
            own = radii[graph.species]
            reach = (own[:, None] + radii[graph.species_of_senders()],)
        energy, vectors, invariants = 0.0, None, []
        pairs = pair_up(graph) if self.axis is None else None
        for layer in range(config.layers):
            weights = {
                key: self.weight(numbered(key, layer), shape)
                for key, shape in layer_shapes(config, n_species, layer).items()
            }
            senders = gather_senders(mix_degrees(features, weights), graph, self.axis)
            step = functools.partial(pass_layer, config, layer, weights, average_neighbors)
            rows = (graph.displacement, senders, features, graph.species, *reach)
            if self.fits_at_once(graph):
                features, energies = step(*rows, pairs=pairs)
            else:  # more than stays in the cache: in blocks, however few
                features, energies = map_blocks(step, self.block, *rows, at_once=1)
            energy += energies
            invariants.append(features[:, 0])
        if config.dipoles:
            vectors = dipoles(features, weights)
        return energy, vectors, tuple(invariants)

    def fits_at_once(self, graph):
        """True where all atoms are taken through a layer at once, not block by block."""
        return self.at_once is None or graph.neighbors.size <= self.at_once

    def weight(self, name, shape):
        return self.param(name, nn.initializers.normal(1.0), shape)


def numbered(key, layer):
    """Name of a parameter: ("mix", 2) of layer 0 is mix_0_2."""
    return "_".join(map(str, (key[0], layer, *key[1:])))


def parameter_shapes(network):
    """Shape of every parameter of a `Network` by name."""
    config, n_species = network.config, network.n_species
    shapes = {"embedding": (n_species, config.channels)}
    for layer in range(config.layers):
        for key, shape in layer_shapes(config, n_species, layer).items():
            shapes[numbered(key, layer)] = shape
    return shapes


def initialize(network, seed):
    """Random parameters of a `Network`, a plain pytree of float32 NumPy arrays.

    The same seed gives the same parameters on every machine.
    """
    rng = np.random.default_rng(seed)
    parameters = {}
    for name, shape in sorted(parameter_shapes(network).items()):
        scale = 1 / shape[0] if name.startswith("product") else 1.0
        parameters[name] = (scale * rng.normal(size=shape)).astype(np.float32)
    return parameters
