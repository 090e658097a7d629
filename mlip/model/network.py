"""The message-passing network: edge displacements in, one energy per atom out.

The mathematics is that of MACE (Batatia et al. 2022, arXiv:2206.07697), by default with its
residual interaction block, normalisation constants included. Every parameter starts as a standard
normal number (those of the product basis divided by their count, as in MACE); all scales are
constants in the forward pass.

Features of degree l are kept as [2l + 1, n_atoms, channels], so that mixing the channels is one
matrix product and the product basis works on contiguous rows.
"""

import functools
import itertools
import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mlip.data.graph import Graph
from mlip.model.blocks import SLOTS_AT_ONCE, from_all_devices, gather_senders, map_blocks
from mlip.model.radial import (
    BASES,
    SILU_GAIN,
    TRANSFORMS,
    radial_basis,
    smooth_cutoff,
    transform_distance,
)
from mlip.model.so3 import (
    L_MAX,
    coupling,
    spherical_harmonics,
    symmetric_coupling,
    symmetric_product,
    unstack,
)

INTERACTIONS = ("residual", "plain", "residual-density", "plain-density")
CUTOFF_ON = ("basis", "functions")
MANY_SPECIES = 8  # beyond which an atom's matrix is fetched instead of applying those of all


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
    radial_widths: tuple[int, ...] = (64, 64, 64)  # hidden layers of the radial network
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
            "n_radial": (2 if self.radial_basis == "gaussian" else 1, 64),
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


def paths(l_in, l_max):
    """Couplings (l_sender, l_edge, l_out) of an interaction that keep the parity of vectors."""
    return [
        (l1, l2, l3)
        for l1 in range(l_in + 1)
        for l2 in range(l_max + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, l_max) + 1, 2)
    ]


def mix_channels(features, weight):
    """features @ weight with unit variance kept, [..., channels_out].

    In two dimensions, since XLA's gradient of a product with more of them copies its operands.
    """
    rows = features.reshape(-1, weight.shape[0])
    mixed = rows @ (weight / math.sqrt(weight.shape[0]))
    return mixed.reshape(*features.shape[:-1], weight.shape[1])


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
                reach = (own[:, None] + from_all_devices(own, self.axis)[graph.neighbors],)
            energy, invariants = 0.0, []
            for layer in range(config.layers):
                weights = {
                    key: self.weight(numbered(key, layer), shape)
                    for key, shape in layer_shapes(config, n_species, layer).items()
                }
                senders = gather_senders(mix_degrees(features, weights), graph, self.axis)
                step = functools.partial(pass_layer, config, layer, weights, average_neighbors)
                rows = (graph.displacement, senders, features, graph.species, *reach)
                at_once = self.slots_at_once and self.slots_at_once // graph.neighbors.shape[1]
                features, energies = map_blocks(step, self.block, *rows, at_once=at_once)
                energy += energies
                invariants.append(features[:, 0])
            return energy, tuple(invariants)

    @property
    def slots_at_once(self):
        """Neighbours of so many atoms together stay in the cache; None where all are taken."""
        return self.block and SLOTS_AT_ONCE * self.block

    def weight(self, name, shape):
        return self.param(name, nn.initializers.normal(1.0), shape)


def layer_shapes(config, n_species, layer):
    """Shapes of a layer's weights by their keys."""
    channels, last = config.channels, layer == config.layers - 1
    l_in, l_out = 0 if layer == 0 else config.hidden_l, 0 if last else config.hidden_l
    routes = paths(l_in, config.l_max)
    widths = (config.n_radial, *config.radial_widths, len(routes) * channels)
    shapes = {("radial", step): shape for step, shape in enumerate(itertools.pairwise(widths))}
    shapes |= {("up", l): (channels, channels) for l in range(l_in + 1)}
    for l in range(config.l_max + 1):
        n_parts = sum(route[2] == l for route in routes)
        shapes["mix", l] = n_parts * channels, channels
    for l in range(l_out + 1):
        for order in range(1, config.correlation + 1):
            n_basis = symmetric_coupling(config.l_max, l, order)[1].shape[0]
            shapes["product", l, order] = n_basis, n_species, channels
        shapes["out", l] = channels, channels
    name, highest = ("skip", min(l_in, l_out))
    if not config.is_residual(layer):
        name, highest = "select", config.l_max
    shapes |= {(name, l): (n_species, channels, channels) for l in range(highest + 1)}
    if config.has_density(layer):
        shapes["density",] = config.n_radial, 1
    if config.has_hidden_readout(layer):
        shapes["readout", "hidden"] = channels, config.readout_width
        channels = config.readout_width
    return shapes | {("readout",): (channels, 1)}


def numbered(key, layer):
    """Name of a parameter: ("mix", 2) of layer 0 is mix_0_2."""
    return "_".join(map(str, (key[0], layer, *key[1:])))


def mix_degrees(features, weights):
    """Features for the neighbours, [n_atoms, components, channels]."""
    degrees = split_degrees(features)
    mixed = [mix_channels(degree, weights["up", l]) for l, degree in enumerate(degrees)]
    return jnp.concatenate(mixed, axis=1)


def split_degrees(features, axis=1):
    """Features of each degree, [..., 2l + 1, ...]."""
    n_degrees = math.isqrt(features.shape[axis])
    return jax.lax.split(features, [2 * l + 1 for l in range(n_degrees)], axis=axis)


def pass_layer(
    config, layer, weights, average_neighbors, displacement, senders, features, species, reach=None
):
    """One layer of a few atoms.

    Args:
      displacement: [n, max_neighbors, 3], Å.
      senders: features of the neighbours, [n, max_neighbors, components, channels].
      features: of the atoms themselves, [n, components, channels].
      species: [n]
      reach: sums of the covalent radii of atom and neighbour, [n, max_neighbors], Å, where the
        distances are transformed.

    Returns:
      new features, [n, components, channels], and energies, [n].
    """
    density, crowding = interaction(config, weights, displacement, senders, reach)
    divisor = 1 + crowding[:, None] if config.has_density(layer) else average_neighbors
    density = [degree / divisor for degree in density]
    added = []
    if config.is_residual(layer):
        degrees = split_degrees(features)
        wanted = sum(key[0] == "skip" for key in weights)
        added = [
            mix_by_species(degree, weights["skip", l], species, "nmc")
            for l, degree in enumerate(degrees[:wanted])
        ]
    else:
        density = [
            mix_by_species(degree, weights["select", l], species)
            for l, degree in enumerate(density)
        ]
    features = product(config, weights, density, added, species)
    return jnp.moveaxis(jnp.concatenate(features), 0, 1), readout(weights, features[0][0])


def interaction(config, weights, displacement, senders, reach):
    """Sum the neighbours' features, coupled to harmonics and radial functions; mix channels.

    Returns for each degree up to l_max [2l + 1, n, channels], and the sum over neighbours of a
    learned weight between 0 and 1, [n], where there is one. Source: eq. 8 and 9; the weight:
    Batatia et al. 2024, arXiv:2401.00096.
    """
    distance = jnp.sqrt((displacement**2).sum(axis=-1))
    harmonics = spherical_harmonics(displacement / distance[..., None], config.l_max)
    argument = transform_distance(config.distance_transform, distance, reach)
    radial = radial_basis(config.radial_basis, argument, config.cutoff, config.n_radial)
    cutoff = smooth_cutoff(distance, config.cutoff, config.cutoff_order)[..., None]
    before, after = (cutoff, 1.0) if config.cutoff_on == "basis" else (1.0, cutoff)
    radial *= before
    senders = split_degrees(senders, axis=2)
    routes = paths(len(senders) - 1, config.l_max)
    functions = radial_network(weights, radial) * after
    functions = jax.lax.split(functions, [config.channels] * len(routes), axis=2)

    sums = [[] for _ in range(config.l_max + 1)]
    for function, (l1, l2, l3) in zip(functions, routes):
        edge, message = harmonics[l2], function[:, :, None] * senders[l1]
        if l1 == 0:
            total = jnp.einsum("nkb,nkc->bnc", edge, message[:, :, 0])
        else:
            tensor = jnp.asarray(math.sqrt(2 * l3 + 1) * coupling(l1, l2, l3), edge.dtype)
            edge = jnp.einsum("nkm,amb->nkab", edge, tensor)
            total = jnp.einsum("nkab,nkac->bnc", edge, message)
        sums[l3].append(total)
    mixed = [
        mix_channels(jnp.concatenate(parts, axis=-1), weights["mix", l])
        for l, parts in enumerate(sums)
    ]
    if ("density",) not in weights:
        return mixed, None
    crowding = jnp.tanh(mix_channels(radial, weights["density",]) ** 2) * after
    return mixed, crowding[..., 0].sum(axis=1)


def radial_network(weights, radial):
    """Perceptron without biases: zero at the cutoff, where its input is zero."""
    hidden = radial.reshape(-1, radial.shape[-1])
    n_steps = sum(key[0] == "radial" for key in weights)
    for step in range(n_steps):
        hidden = mix_channels(hidden, weights["radial", step])
        if step < n_steps - 1:
            hidden = SILU_GAIN * jax.nn.silu(hidden)
    return hidden.reshape(*radial.shape[:2], -1)


def mix_by_species(features, weight, species, axes="mnc"):
    """`through_species` with unit variance kept."""
    n_species, channels = weight.shape[:2]
    scale = 1 / math.sqrt(channels * n_species)
    return through_species(features, weight, species, axes) * scale


def through_species(features, weight, species, axes="mnc"):
    """Features of n atoms @ weight[species], [2l + 1, n, channels].

    Applying the matrices of a few species to all atoms and picking is quicker than fetching one
    for every atom; for 89 species it is ten times slower.

    Args:
      weight: [n_species, channels, channels].
      axes: of the features, components m, atoms n and channels c.
    """
    n_species = len(weight)
    if n_species > MANY_SPECIES:
        return jnp.einsum(f"{axes},ncd->mnd", features, weight[species])
    every = jnp.einsum(f"{axes},zcd->mznd", features, weight)
    return jnp.einsum("mznd,nz->mnd", every, jax.nn.one_hot(species, n_species, dtype=every.dtype))


def rows_of_species(weight, species):
    """weight[:, species] of a [n_basis, n_species, channels] weight: [n_basis, n, channels]."""
    n_species = weight.shape[1]
    if n_species > MANY_SPECIES:
        return weight[:, species]
    one_hot = jax.nn.one_hot(species, n_species, dtype=weight.dtype)
    return jnp.einsum("nz,bzc->bnc", one_hot, weight)


def product(config, weights, density, added, species):
    """Symmetric products of the density with weights of the species. Source: eq. 10 and 11.

    Args:
      added: what is added to the lowest degrees, [2l + 1, n, channels] each.
    """
    components = [row for degree in density for row in unstack(degree)]
    out = []
    for l in range(sum(key[0] == "out" for key in weights)):
        chosen = [
            rows_of_species(weights["product", l, order], species)
            for order in range(1, config.correlation + 1)
        ]
        basis = jnp.stack(symmetric_product(components, chosen, config.l_max, l))
        feature = mix_channels(basis, weights["out", l])
        out.append(feature + added[l] if l < len(added) else feature)
    return out


def readout(weights, invariant):
    """Energies of the atoms, [n]. Source: eq. 13."""
    if ("readout", "hidden") in weights:
        invariant = SILU_GAIN * jax.nn.silu(mix_channels(invariant, weights["readout", "hidden"]))
    return mix_channels(invariant, weights["readout",])[:, 0]


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
