"""The message-passing network: edge displacements in, one energy per atom out.

The mathematics is that of MACE (Batatia et al. 2022, arXiv:2206.07697), by default with its
residual interaction block, normalisation constants included, and a smaller radial network. Every
parameter starts as a standard normal number (those of the product basis divided by their count, as
in MACE); all scales are constants in the forward pass.
"""

import functools
import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np

from mlip.data.graph import Graph
from mlip.model.blocks import gather_senders, map_blocks, pair_up
from mlip.model.mace.layer import layer_shapes, mix_degrees, pass_layer
from mlip.model.radial import BASES, TRANSFORMS
from mlip.model.so3 import L_MAX

INTERACTIONS = ("residual", "plain", "residual-density", "plain-density")
CUTOFF_ON = ("basis", "functions")
SLOTS_AT_ONCE = 70  # neighbour slots that stay in the cache, for each atom of a block
# Slots that are taken at once whatever the block, and for how many features of an atom: measured
# on molecules of 27 atoms with 256 and 384.
AT_LEAST, FEW_COLUMNS = 720, 256


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network. The defaults suit a few hundred to a few thousand frames."""

    cutoff: float = 5.0  # Å: atoms farther apart do not see each other within one layer
    channels: int = 64  # features of each degree on an atom
    l_max: int = 3  # largest degree of the spherical harmonics on an edge, 0 to 3
    hidden_l: int = 0  # largest degree of the features passed from layer to layer, 0 to l_max
    correlation: int = 3  # order of the product basis: 3 couples four bodies in one layer
    layers: int = 2  # message-passing layers
    n_radial: int = 8  # Bessel functions of the distance
    radial_widths: tuple[int, ...] = (64,)  # hidden layers of the radial network; MACE: 64, 64, 64
    cutoff_order: int = 5  # p of the smooth cutoff
    readout_width: int = 16  # hidden width of the last readout; the others are linear
    zbl: bool = False  # add the ZBL repulsion of the nuclei below the sum of covalent radii
    zbl_order: int = 6  # p of its smooth cutoff
    zbl_scaled: bool = False  # multiply it by the potential's scale, as the network's energies
    radial_basis: str = "bessel"  # bessel, gaussian or chebyshev
    distance_transform: str = "none"  # before the basis: none, or by the elements agnesi or soft
    cutoff_on: str = "basis"  # what the smooth cutoff multiplies: basis, or the learned functions
    interaction: str = "residual"  # residual, plain, residual-density or plain-density
    first_interaction: str = "residual"  # the same for the first layer
    hidden_readout: bool | None = None  # hidden layer in the last readout; if layers > 1 by default

    def __post_init__(self):
        object.__setattr__(self, "radial_widths", tuple(self.radial_widths))
        choices = {
            "radial_basis": BASES,
            "distance_transform": TRANSFORMS,
            "cutoff_on": CUTOFF_ON,
            "interaction": INTERACTIONS,
            "first_interaction": INTERACTIONS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}"
                )
        limits = {
            "channels": (1, 4096),
            "l_max": (0, L_MAX),
            "hidden_l": (0, self.l_max),
            "correlation": (1, 4),
            "layers": (1, 10),
            "n_radial": (2 if self.radial_basis == "gaussian" else 1, 256),
            "cutoff_order": (3, 20),
            "zbl_order": (3, 20),
            "readout_width": (1, 4096),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must lie between {low} and {high}")
        if not (math.isfinite(self.cutoff) and 0 < self.cutoff <= 20):
            raise ValueError(
                f"cutoff is {self.cutoff} Å; it must be positive and at most 20 Å (5 Å is usual)"
            )
        if not self.radial_widths or not all(1 <= w <= 4096 for w in self.radial_widths):
            raise ValueError(
                f"radial_widths is {self.radial_widths}; give one or more widths between 1 and 4096"
            )

    def is_residual(self, layer):
        """True where a layer adds the atoms' previous features; else their species mixes sums."""
        return self._interaction(layer).startswith("residual")

    def has_density(self, layer):
        """True where a layer divides its sums by a learned density, not by the mean count."""
        return self._interaction(layer).endswith("density")

    def _interaction(self, layer):
        return self.first_interaction if layer == 0 else self.interaction

    def has_hidden_readout(self, layer):
        """True where a layer's readout has a hidden layer."""
        wanted = self.layers > 1 if self.hidden_readout is None else self.hidden_readout
        return wanted and layer == self.layers - 1


class Network(nn.Module):
    """Energies per atom in units of the potential's scale, from edge displacements."""

    config: NetworkConfig
    n_species: int
    block: int | None = None  # atoms taken through a layer at a time; None takes all
    axis: str | None = None  # of the devices over which the atoms are spread

    @nn.compact
    def __call__(self, graph: Graph, average_neighbors, radii):
        """Energies and features of the atoms.

        Args:
          graph: displacements decide the precision.
          average_neighbors: scalar by which the sums over neighbours are divided.
          radii: covalent radii of the species, [n_species], Å, by which distances are transformed.

        Returns:
          energies, [n_atoms], and layer by layer the invariant features, [n_atoms, channels].
        """
        config, n_species = self.config, self.n_species
        # The hardware's reduced-precision products (TF32, bfloat16) would spoil the forces.
        with jax.default_matmul_precision("highest"):
            one_hot = jax.nn.one_hot(graph.species, n_species, dtype=graph.displacement.dtype)
            embedding = self.weight("embedding", (n_species, config.channels))
            features = (one_hot @ embedding / math.sqrt(n_species))[:, None]
            reach = ()
            if config.distance_transform != "none":
                own = radii[graph.species]
                reach = (own[:, None] + radii[graph.species_of_senders()],)
            energy, invariants = 0.0, []
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
            return energy, tuple(invariants)

    def fits_at_once(self, graph):
        """True where all atoms are taken through a layer at once, not block by block."""
        return not self.slots_at_once or graph.neighbors.size <= self.slots_at_once

    @property
    def slots_at_once(self):
        """Neighbours of so many atoms together stay in the cache; None where all are taken."""
        columns = self.config.channels * (self.config.hidden_l + 1)
        least = AT_LEAST if columns <= FEW_COLUMNS else 0
        return self.block and max(SLOTS_AT_ONCE * self.block, least)

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
