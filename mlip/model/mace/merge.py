"""Folding a trained network: its parameters are constant, so that much can be merged."""

import math

import numpy as np

from mlip.data.structure import COVALENT_RADII
from mlip.model.mace.layer import paths
from mlip.model.mace.tables import edge_density, few_functions, fit, radial_functions


def merge(potential, kept):
    """Parameters of a `FoldedNetwork` in float64.

    Args:
      kept: indices of the species that are kept.

    Raises:
      NoTables: see `fit`.
    """
    config, channels = potential.config, potential.config.channels
    old = {name: np.asarray(value, float) for name, value in potential.parameters.items()}
    unit, n_species = 1 / math.sqrt(channels), len(potential.species)
    features = old["embedding"][kept] / math.sqrt(n_species)
    new = {}
    for layer in range(config.layers):
        last = layer == config.layers - 1
        readout = f"readout_{layer}"
        into_readout = np.eye(channels)
        if config.has_hidden_readout(layer):
            into_readout = old[f"{readout}_hidden"] * unit
            new[readout] = old[readout] / math.sqrt(config.readout_width)
        elif last:
            into_readout, new[readout] = old[readout] * unit, np.ones((1, 1))
        else:
            new[readout] = old[readout] * unit

        l_out = 0 if last else config.hidden_l
        for l in range(l_out + 1):
            new[f"out_{layer}_{l}"] = old[f"out_{layer}_{l}"] * unit @ into_readout
            for order in range(1, config.correlation + 1):
                name = f"product_{layer}_{l}_{order}"
                new[name] = old[name][:, kept]
            if f"skip_{layer}_{l}" in old:
                skip = old[f"skip_{layer}_{l}"][kept] / math.sqrt(channels * n_species)
                new[f"skip_{layer}_{l}"] = skip @ into_readout
        new |= _sums(potential, layer, kept, features, old)
        if layer > 0:
            for l in range(config.hidden_l + 1):
                new[f"up_{layer}_{l}"] = old[f"up_{layer}_{l}"] * unit
        elif config.is_residual(0):
            new["own"] = np.einsum("zc,zcd->zd", features, new.pop("skip_0_0"))
    return new


def _sums(potential, layer, kept, features, old):
    """Tables of a layer's radial functions and the matrices that mix its sums over neighbours.

    Args:
      features: of the kept species before the first layer, [n_species, channels].
    """
    config, channels = potential.config, potential.config.channels
    routes = paths(0 if layer == 0 else config.hidden_l, config.l_max)
    divisor = 1.0 if config.has_density(layer) else potential.average_neighbors
    radii = COVALENT_RADII[[potential.species[index] for index in kept]]
    n_parts = [sum(route[2] == l for route in routes) for l in range(config.l_max + 1)]
    mix = [old[f"mix_{layer}_{l}"] / math.sqrt(n * channels) for l, n in enumerate(n_parts)]
    select = None
    if not config.is_residual(layer):
        scale = 1 / math.sqrt(channels * len(potential.species))
        select = [old[f"select_{layer}_{l}"][kept] * scale for l in range(config.l_max + 1)]
        if len(kept) == 1:
            mix, select = [m @ s[0] for m, s in zip(mix, select)], None

    def functions(distance, i, j):  # [n, routes, channels]
        values = radial_functions(potential, layer, distance, radii[i] + radii[j]) / divisor
        return values.reshape(len(distance), len(routes), channels)

    # Pairs of species whose radial functions differ, in the order in which they are looked up.
    pairs = [(0, 0)]
    if config.distance_transform != "none":
        pairs = [(i, j) for i in range(len(kept)) for j in range(i + 1)]
    if layer == 0:
        new = _first_sums(potential, functions, features, old, mix, select)
    else:
        table = fit(potential, lambda r, i, j: functions(r, i, j).reshape(len(r), -1), pairs)
        new = _numbered("table", layer, np.split(table, len(routes), axis=1))
        new |= _numbered("mix", layer, mix) | _numbered("select", layer, select or [])
    if config.has_density(layer):
        new[f"density_{layer}"] = fit(
            potential,
            lambda r, i, j: edge_density(potential, layer, r, radii[i] + radii[j]),
            pairs,
        )
    return new


def _first_sums(potential, functions, features, old, mix, select):
    """What `_sums` gives in the first layer, whose neighbours have the features of their species.

    Args:
      functions: of distances and a pair of species, [n, degrees, channels].
      select: for each degree the matrices of the species, or None.
    """
    config, n_species = potential.config, len(features)
    senders = features @ old["up_0_0"] / math.sqrt(config.channels)

    def mixed(distance, receiver, sender):
        values = functions(distance, receiver, sender) * senders[sender]
        matrices = mix if select is None else [m @ s[receiver] for m, s in zip(mix, select)]
        return np.concatenate([values[:, l] @ m for l, m in enumerate(matrices)], axis=1)

    differ = select is not None or config.distance_transform != "none"
    receivers = range(n_species) if differ else range(1)
    pairs = [(receiver, sender) for receiver in receivers for sender in range(n_species)]
    table = fit(potential, mixed, pairs)
    if n_species > 1:
        return _numbered("table", 0, np.split(table, config.l_max + 1, axis=1))
    basis, expand = few_functions(table, potential)
    matrices = np.split(expand, config.l_max + 1, axis=1)
    return _numbered("table", 0, [basis]) | _numbered("mix", 0, matrices)


def _numbered(name, layer, arrays):
    return {f"{name}_{layer}_{index}": array for index, array in enumerate(arrays)}
