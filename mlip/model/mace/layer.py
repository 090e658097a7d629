"""One layer of the network, as a function of a few atoms and their neighbours.

Features of degree l are kept as [2l + 1, n_atoms, channels], so that mixing the channels is one
matrix product and the product basis works on contiguous rows. Equations are those of MACE
(Batatia et al. 2022, arXiv:2206.07697); configs are `NetworkConfig`s.
"""

import itertools
import math

import jax
import jax.numpy as jnp

from mlip.model.radial import (
    SILU_GAIN,
    in_float64,
    radial_basis,
    smooth_cutoff,
    transform_distance,
)
from mlip.model.so3 import (
    coupling,
    spherical_harmonics,
    symmetric_coupling,
    symmetric_product,
    unstack,
)

MANY_SPECIES = 8  # beyond which an atom's matrix is fetched instead of applying those of all


def layer_shapes(config, n_species, layer):
    """Shapes of a layer's weights by their keys."""
    channels, last = config.channels, layer == config.layers - 1
    l_in = 0 if layer == 0 else config.hidden_l
    l_out = int(config.dipoles) if last else config.hidden_l
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
    if last and config.dipoles:
        shapes["dipole",] = config.channels, 1
    return shapes | {("readout",): (channels, 1)}


def paths(l_in, l_max):
    """Couplings (l_sender, l_edge, l_out) of an interaction that keep the parity of vectors."""
    return [
        (l1, l2, l3)
        for l1 in range(l_in + 1)
        for l2 in range(l_max + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, l_max) + 1, 2)
    ]


def pass_layer(
    config,
    layer,
    weights,
    average_neighbors,
    displacement,
    senders,
    features,
    species,
    reach=None,
    pairs=None,
):
    """One layer of a few atoms.

    Args:
      displacement: [n, max_neighbors, 3], Å.
      senders: features of the neighbours, [n, max_neighbors, components, channels].
      features: of the atoms themselves, [n, components, channels].
      species: [n]
      reach: sums of the covalent radii of atom and neighbour, [n, max_neighbors], Å, where the
        distances are transformed.
      pairs: of the edges, if all are here: functions of the distance are the same both ways.

    Returns:
      new features, [n, components, channels], and energies, [n].
    """
    density, crowding = interaction(config, weights, displacement, senders, reach, pairs)
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


def mix_degrees(features, weights):
    """Features for the neighbours, [n_atoms, components, channels]."""
    degrees = split_degrees(features)
    mixed = [mix_channels(degree, weights["up", l]) for l, degree in enumerate(degrees)]
    return jnp.concatenate(mixed, axis=1)


def split_degrees(features, axis=1):
    """Features of each degree, [..., 2l + 1, ...]."""
    n_degrees = math.isqrt(features.shape[axis])
    return jax.lax.split(features, [2 * l + 1 for l in range(n_degrees)], axis=axis)


def mix_channels(features, weight):
    """features @ weight with unit variance kept, [..., channels_out].

    In two dimensions, since XLA's gradient of a product with more of them copies its operands.
    """
    rows = features.reshape(-1, weight.shape[0])
    mixed = rows @ (weight / math.sqrt(weight.shape[0]))
    return mixed.reshape(*features.shape[:-1], weight.shape[1])


def interaction(config, weights, displacement, senders, reach, pairs):
    """Sum the neighbours' features, coupled to harmonics and radial functions; mix channels.

    Returns for each degree up to l_max [2l + 1, n, channels], and the sum over neighbours of a
    learned weight between 0 and 1, [n], where there is one. Source: eq. 8 and 9; the weight:
    Batatia et al. 2024, arXiv:2401.00096.
    """
    distance = jnp.sqrt((displacement**2).sum(axis=-1))
    harmonics = spherical_harmonics(displacement / distance[..., None], config.l_max)
    if pairs is not None:
        distance = pairs.choose(distance, config.cutoff)
        reach = None if reach is None else pairs.choose(reach, 1.0)
    argument = transform_distance(config.distance_transform, distance, reach)
    radial = radial_basis(config.radial_basis, argument, config.cutoff, config.n_radial)
    cutoff = smooth_cutoff(distance, config.cutoff, config.cutoff_order)[..., None]
    before, after = (cutoff, 1.0) if config.cutoff_on == "basis" else (1.0, cutoff)
    radial *= before
    senders = split_degrees(senders, axis=2)
    routes = paths(len(senders) - 1, config.l_max)
    functions = radial_network(weights, radial) * after
    functions = functions if pairs is None else pairs.give(functions)
    functions = jax.lax.split(functions, [config.channels] * len(routes), axis=2)

    sums = [[] for _ in range(config.l_max + 1)]
    for function, (l1, l2, l3) in zip(functions, routes):
        edge, message = harmonics[l2], function[:, :, None] * senders[l1]
        if l1 > 0:
            tensor = jnp.asarray(math.sqrt(2 * l3 + 1) * coupling(l1, l2, l3), edge.dtype)
            edge = jnp.einsum("nkm,amb->nkab", edge, tensor)
        # Neighbours and components in one axis, with the edge on the left: otherwise XLA multiplies
        # transposed copies.
        edge, message = (e.reshape(len(e), -1, e.shape[-1]) for e in (edge, message))
        total = jnp.einsum("nkb,nkc->nbc", edge, message)
        sums[l3].append(jnp.moveaxis(total, 1, 0))
    mixed = [
        mix_channels(jnp.concatenate(parts, axis=-1), weights["mix", l])
        for l, parts in enumerate(sums)
    ]
    if ("density",) not in weights:
        return mixed, None
    crowding = jnp.tanh(mix_channels(radial, weights["density",]) ** 2) * after
    crowding = crowding if pairs is None else pairs.give(crowding)
    return mixed, crowding[..., 0].sum(axis=1)


def radial_network(weights, radial):
    """Perceptron without biases: zero at the cutoff, where its input is zero."""
    hidden = radial.reshape(-1, radial.shape[-1])
    n_steps = sum(key[0] == "radial" for key in weights)
    for step in range(n_steps):
        hidden = mix_channels(hidden, weights["radial", step])
        if step < n_steps - 1:
            hidden = SILU_GAIN * jax.nn.silu(hidden)
    return hidden.reshape(*radial.shape[:-1], -1)


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
    # As many products as rows of the basis, since the gradient of a single one copies its operands.
    one_hot = jnp.broadcast_to(one_hot, (len(weight), *one_hot.shape))
    return jnp.einsum("bnz,bzc->bnc", one_hot, weight)


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


def dipoles(features, weights):
    """Dipole moments of atoms, [n, 3], e·Å, from the vectors among their features [n, 4, channels].

    Their sum is the dipole moment of a molecule without charge, wherever its origin is. Source:
    MACE's dipole models (Batatia et al. 2022, arXiv:2206.07697, whose readouts they extend).
    """
    return mix_channels(features[:, 1:4], weights["dipole",])[..., 0]


def readout(weights, invariant):
    """Energies of the atoms, [n]. Source: eq. 13."""
    if ("readout", "hidden") in weights:
        invariant = SILU_GAIN * jax.nn.silu(mix_channels(invariant, weights["readout", "hidden"]))
    return mix_channels(in_float64(invariant), in_float64(weights["readout",]))[:, 0]
