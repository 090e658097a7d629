"""The network of a trained potential with constant parameters: the same function, less work.

It differs from `mlip.model.network` in form only. The radial networks are tables of splines. In
the first layer features depend on the species alone, so that sums over neighbours are mixed before
they are taken (several species: in the tables) or after (one species: sums of a few dozen radial
functions, as in the atomic cluster expansion, Drautz, Phys. Rev. B 99, 014104, 2019). The last
layer's derivative is taken together with its value, atoms block by block.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import BSpline, PPoly

from mlip.model.blocks import collect_slots, from_all_devices, gather_senders, map_blocks
from mlip.model.network import NetworkConfig, paths, rows_of_species, through_species
from mlip.model.radial import SILU_GAIN, smooth_cutoff
from mlip.model.so3 import coupling, spherical_harmonics, symmetric_product, unstack

DEGREE = 5  # of the splines: four continuous derivatives


@dataclass(frozen=True)
class FoldedNetwork:
    """Stands in for `Network` where parameters are not differentiated."""

    config: NetworkConfig
    n_species: int
    intervals: tuple[int, ...]  # of the splines of each layer
    block: int | None = None  # atoms taken at a time; None takes all
    axis: str | None = None  # of the devices over which the atoms are spread

    def apply(self, variables, graph, average_neighbors):
        """Energies of the atoms as `Network` gives them; intermediate features are not kept.

        Args:
          average_neighbors: not used; it is part of the tables.
        """
        weights = variables["params"]
        with jax.default_matmul_precision("highest"):
            return self.energies(weights, graph), ()

    def energies(self, weights, graph):
        kinds = from_all_devices(graph.species, self.axis)[graph.neighbors]

        def first(displacement, kinds, species):
            own = weights["own"][species][:, None]
            return self.layer(weights, 0, displacement, kinds, None, own, species)

        rows = (graph.displacement, kinds, graph.species)
        energy, senders, own = map_blocks(first, self.block, *rows)
        for layer in range(1, self.config.layers - 1):
            more, senders, own = self.middle(weights, layer, graph, senders, own)
            energy += more
        return (
            energy if self.config.layers == 1 else energy + self.last(weights, graph, senders, own)
        )

    def middle(self, weights, layer, graph, senders, own):
        def one(displacement, senders, own, species):
            return self.layer(weights, layer, displacement, None, senders, own, species)

        gathered = gather_senders(senders, graph, self.axis)
        return map_blocks(one, self.block, graph.displacement, gathered, own, graph.species)

    def last(self, weights, graph, senders, own):
        """Energies of the last layer; the reverse pass finds its derivatives already taken.

        An atom's energy depends on no other atom's rows, so that a block's derivatives can be
        taken while the block is in the cache.
        """

        def one(weights, displacement, senders, own, species):
            layer = self.config.layers - 1
            return self.layer(weights, layer, displacement, None, senders, own, species)[0]

        def over_blocks(function, weights, displacement, senders, own):
            everyone = from_all_devices(senders, self.axis)
            return map_blocks(
                lambda displacement, neighbors, own, species: function(
                    weights, displacement, everyone[neighbors], own, species
                ),
                self.block,
                *(displacement, graph.neighbors, own, graph.species),
            )

        @jax.custom_vjp
        def energies(*arguments):
            return over_blocks(one, *arguments)

        def forward(weights, *rows):
            def both(weights, *rows):
                value, pull = jax.vjp(lambda *moving: one(weights, *moving, rows[-1]), *rows[:-1])
                return value, pull(jnp.ones_like(value))

            value, derivatives = over_blocks(both, weights, *rows)
            return value, (weights, derivatives)

        def backward(kept, weight):
            weights, (displacement, slots, own) = kept
            senders = collect_slots(slots, graph.reverse, weight, self.block, self.axis)
            weight = weight[:, None, None]
            return not_numbers(weights), displacement * weight, senders, own * weight

        energies.defvjp(forward, backward)
        return energies(weights, graph.displacement, senders, own)

    def layer(self, weights, layer, displacement, kinds, senders, own, species):
        """One layer of a few atoms.

        Args:
          displacement: [n, max_neighbors, 3].
          kinds: in the first layer the species of the neighbours, [n, max_neighbors].
          senders: in the other layers their features, [n, max_neighbors, components, channels].
          own: what the atoms' previous features add to the new ones, [n, components, channels].

        Returns:
          energies [n]; features for the neighbours of the next layer, and the atoms' own share
          in it, as above. The last layer gives no features.
        """
        config = self.config
        last = layer == config.layers - 1
        density = self.density(weights, layer, displacement, kinds, senders)
        components = [row for degree in density for row in unstack(degree)]
        one_hot = jax.nn.one_hot(species, self.n_species, dtype=displacement.dtype)
        l_out = 0 if last else config.hidden_l
        features, start = [], 0
        for l in range(l_out + 1):
            basis = jnp.stack(self.product(weights, layer, l, components, one_hot))
            feature = rows_times(basis, weights[f"out_{layer}_{l}"])
            if start < own.shape[1]:
                feature += jnp.moveaxis(own[:, start : start + 2 * l + 1], 1, 0)
            features.append(feature)
            start += 2 * l + 1
        hidden = features[0][0]
        if last:
            if layer > 0:
                hidden = SILU_GAIN * jax.nn.silu(hidden)
            return (hidden @ weights[f"readout_{layer}"])[:, 0], None, None
        energy = (hidden @ weights[f"readout_{layer}"])[:, 0]
        senders = [rows_times(f, weights[f"up_{layer + 1}_{l}"]) for l, f in enumerate(features)]
        own = []
        for l, feature in enumerate(features):
            if (skip := weights.get(f"skip_{layer + 1}_{l}")) is not None:
                every = jnp.einsum("mnc,zcd->mznd", feature, skip)
                own.append(jnp.einsum("mznd,nz->nmd", every, one_hot))
        senders = jnp.moveaxis(jnp.concatenate(senders), 0, 1)
        return energy, senders, jnp.concatenate(own, axis=1)

    def product(self, weights, layer, l, components, one_hot):
        config, chosen = self.config, []
        for order in range(1, config.correlation + 1):
            weight = weights[f"product_{layer}_{l}_{order}"]  # [n_basis, n_species, channels]
            if self.n_species > 1:
                weight = jnp.einsum("nz,bzc->bnc", one_hot, weight)
            chosen.append(weight)
        return symmetric_product(components, chosen, config.l_max, l)

    def density(self, weights, layer, displacement, kinds, senders):
        """Mixed sums over the neighbours, for each degree [2l + 1, n, channels]."""
        config = self.config
        distance = jnp.sqrt((displacement**2).sum(axis=-1))
        harmonics = spherical_harmonics(displacement / distance[..., None], config.l_max, axis=1)
        sizes = [2 * l + 1 for l in range(config.l_max + 1)]
        if layer > 0:
            routes = paths(config.hidden_l, config.l_max)
            senders = jax.lax.split(senders, sizes[: config.hidden_l + 1], axis=2)
            edges = [edge_tensor(harmonics[l2], l1, l2, l3) for l1, l2, l3 in routes]
        elif self.n_species > 1:
            routes = paths(0, config.l_max)
            edges = [degree[..., None] for degree in harmonics]
        else:  # all degrees share a few functions of the distance
            routes = [(0, 0, 0)]
            edges = [jnp.concatenate(harmonics, axis=1)[..., None]]
        tables = [weights[f"table_{layer}_{route}"] for route in range(len(routes))]
        first = 0 if kinds is None else kinds * (self.intervals[layer] + DEGREE)
        sums = self.neighbor_sums(layer, tables, routes, first, distance, edges, senders)

        if layer == 0 and self.n_species > 1:
            return [jnp.moveaxis(s, 1, 0) for s in sums]
        if layer == 0:
            parts = jax.lax.split(jnp.moveaxis(sums[0], 1, 0), sizes, axis=0)
        else:
            parts = [
                [s for s, route in zip(sums, routes) if route[2] == l] for l in range(len(sizes))
            ]
            parts = [jnp.moveaxis(jnp.concatenate(p, axis=-1), 1, 0) for p in parts]
        return [rows_times(p, weights[f"mix_{layer}_{l}"]) for l, p in enumerate(parts)]

    def neighbor_sums(self, layer, tables, routes, first, distance, edges, senders):
        """Σ over neighbours of edge tensor × radial functions × features, for each route.

        The reverse pass looks the functions up again rather than keep them, and finds the
        derivative by the distance from a look-up of their slopes.

        Args:
          first: row of the tables where the functions of a sender begin, [n, max_neighbors] or 0.
          edges: [n, 2 l3 + 1, max_neighbors, 2 l1 + 1] each.
          senders: for each degree l1 [n, max_neighbors, 2 l1 + 1, channels], or None.

        Returns:
          [n, 2 l3 + 1, channels] for each route.
        """

        def look_up(tables, distance, first, slopes):
            row, *weights = spline_weights(
                distance, self.config.cutoff, self.config.cutoff_order, self.intervals[layer]
            )
            return [spline(table, row + first, weights[slopes]) for table in tables]

        def forward(tables, distance, first, edges, senders):
            messages = []
            for values, (l1, _, _) in zip(look_up(tables, distance, first, slopes=False), routes):
                message = values[:, :, None]
                message = message if senders is None else message * senders[l1]
                messages.append(message.reshape(len(message), -1, message.shape[-1]))
            sums = [
                jnp.einsum("nme,nec->nmc", edge.reshape(*edge.shape[:2], -1), message)
                for edge, message in zip(edges, messages)
            ]
            return sums, (tables, distance, first, edges, senders, messages)

        def backward(kept, pulls):
            tables, distance, first, edges, senders, messages = kept
            by_edges = [
                jnp.einsum("nec,nmc->nme", message, pull).reshape(edge.shape)
                for edge, message, pull in zip(edges, messages, pulls)
            ]
            by_message = [
                sum(edge[:, m, ..., None] * pull[:, m, None, None] for m in range(edge.shape[1]))
                for edge, pull in zip(edges, pulls)
            ]
            # Barriers, or XLA would keep the gathered rows of the tables to use them twice.
            again = jax.lax.optimization_barrier(distance)
            once_more = jax.lax.optimization_barrier(again)
            by_slope, by_senders = 0.0, None if senders is None else [0.0] * len(senders)
            for slopes, message, (l1, _, _) in zip(
                look_up(tables, again, first, True), by_message, routes
            ):
                along = message if senders is None else message * senders[l1]
                by_slope += slopes * along.sum(axis=2)
            if senders is not None:
                for values, message, (l1, _, _) in zip(
                    look_up(tables, once_more, first, False), by_message, routes
                ):
                    by_senders[l1] += values[:, :, None] * message
            return not_numbers(tables), by_slope.sum(axis=-1), None, by_edges, by_senders

        @jax.custom_vjp
        def sums(*arguments):
            return forward(*arguments)[0]

        sums.defvjp(forward, backward)
        return sums(tables, distance, first, edges, senders)


def not_numbers(constants):
    """The derivative by what is constant here: whoever asks for it is to notice."""
    return jax.tree.map(lambda array: jnp.full_like(array, jnp.nan), constants)


def rows_times(features, weight):
    """features @ weight for features [m, n, channels], in two dimensions."""
    product = features.reshape(-1, features.shape[-1]) @ weight
    return product.reshape(*features.shape[:-1], weight.shape[1])


def edge_tensor(harmonics, l1, l2, l3):
    """Harmonics [n, 2 l2 + 1, k] coupled to take degree l1 to l3: [n, 2 l3 + 1, k, 2 l1 + 1]."""
    if l1 == 0:
        return harmonics[..., None]
    tensor = np.sqrt(2 * l3 + 1) * coupling(l1, l2, l3)
    return jnp.einsum("nmk,amb->nbka", harmonics, jnp.asarray(tensor, harmonics.dtype))


# Powers of the position in an interval, highest first, of each of the pieces that overlap there.
_SPLINE = PPoly.from_spline(BSpline.basis_element(np.arange(DEGREE + 2)))
PIECES = _SPLINE.c[:, np.searchsorted(_SPLINE.x, np.arange(DEGREE, -1, -1), side="right") - 1]


def spline_weights(distance, cutoff, cutoff_order, intervals):
    """Weights of the spline coefficients for functions that end smoothly at the cutoff.

    Args:
      distance: [...], Å.
      intervals: number of equal parts between 0 and the cutoff.

    Returns:
      the first coefficient, [...]; the weights of it and the next `DEGREE`; and their derivatives
      by the distance. All are zero at and beyond the cutoff.
    """
    position = distance * (intervals / cutoff)
    row = jnp.clip(jnp.floor(position), 0, intervals - 1)
    t = jnp.minimum(position - row, 1.0)
    envelope, envelope_slope = jax.jvp(
        lambda r: smooth_cutoff(r, cutoff, cutoff_order), (distance,), (jnp.ones_like(distance),)
    )
    weights, slopes = [], []
    for powers in PIECES.T:
        value, slope = 0.0, 0.0
        for power in powers:
            slope = slope * t + value
            value = value * t + float(power)
        weights.append(envelope * value)
        slopes.append(envelope_slope * value + envelope * slope * (intervals / cutoff))
    return row.astype(jnp.int32), weights, slopes


def spline(table, row, weights):
    """Functions [..., columns] from a table of coefficients [rows, columns]."""
    return sum(
        weight[..., None] * table.at[row + shift].get(mode="promise_in_bounds")
        for shift, weight in enumerate(weights)
    )
