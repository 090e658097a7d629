"""The network of a trained potential with constant parameters: the same function, less work.

It differs from `mlip.model.mace.network` in form only. The radial networks are tables of splines.
In the first layer features depend on the species alone, so that sums over neighbours are mixed
before they are taken (several species: in the tables) or after (one species: sums of a few dozen
radial functions, as in the atomic cluster expansion, Drautz, Phys. Rev. B 99, 014104, 2019). Where
radial functions depend on both elements, every pair of species has tables of its own. The last
layer's derivative is taken together with its value, atoms block by block.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from mlip.model.blocks import (
    collect_slots,
    from_all_devices,
    gather_senders,
    map_blocks,
    to_own_devices,
)
from mlip.model.mace.layer import paths, rows_of_species, through_species
from mlip.model.mace.splines import DEGREE, spline, spline_weights
from mlip.model.radial import SILU_GAIN, in_float64
from mlip.model.so3 import coupling, spherical_harmonics, symmetric_product, unstack


@dataclass(frozen=True)
class FoldedNetwork:
    """Stands in for `Network` where parameters are not differentiated."""

    config: object  # a `NetworkConfig`
    n_species: int
    block: int | None = None  # atoms taken at a time; None takes all
    axis: str | None = None  # of the devices over which the atoms are spread
    # Of each layer the number of atoms, first in the graph, that it is taken for; None takes all.
    # Neighbours of a layer's atoms lie among those of the layer before.
    rows: tuple[int, ...] | None = None

    @property
    def by_pair(self):
        """True where radial functions depend on the species of both atoms."""
        return self.n_species > 1 and self.config.distance_transform != "none"

    def energies(self, weights, graph):
        parts = self.parts(graph)
        n_atoms, counted = len(graph.species), len(parts[-1].species)
        kinds = graph.species_of_senders()[: len(parts[0].species)]

        def first(displacement, species, kinds):
            own = jnp.zeros((len(species), 0, self.config.channels), displacement.dtype)
            if "own" in weights:
                own = weights["own"][species][:, None]
            return self.layer(weights, 0, displacement, None, own, species, kinds)

        rows = (parts[0].displacement, parts[0].species, kinds)
        energy, senders, own = map_blocks(first, self.block, *rows)
        energy = energy[:counted]
        kinds = (kinds,) if self.by_pair else ()
        for layer in range(1, self.config.layers - 1):
            more, senders, own = self.middle(weights, layer, parts[layer], senders, own, kinds)
            energy += more[:counted]
        if self.config.layers > 1:
            energy += self.last(weights, parts[-1], senders, own, kinds)
        return jnp.pad(energy, (0, n_atoms - counted))

    def parts(self, graph):
        """The graph of each layer: its own rows, and the opposite edges of the layer before."""
        if self.rows is None:
            return [graph] * self.config.layers
        return [
            replace(
                graph,
                species=graph.species[:count],
                neighbors=graph.neighbors[:count],
                reverse=graph.reverse[:senders],
                displacement=graph.displacement[:count],
            )
            for count, senders in zip(self.rows, (0, *self.rows))
        ]

    def middle(self, weights, layer, graph, senders, own, kinds):
        def one(displacement, *others):
            return self.layer(weights, layer, displacement, *others)

        gathered = gather_senders(senders, graph, self.axis)
        own, *kinds = (array[: len(graph.species)] for array in (own, *kinds))
        rows = (graph.displacement, gathered, own, graph.species, *kinds)
        return map_blocks(one, self.block, *rows)

    def last(self, weights, graph, senders, own, kinds):
        """Energies of the last layer; the reverse pass finds its derivatives already taken.

        An atom's energy depends on no other atom's rows, so that a block's derivatives can be
        taken while the block is in the cache.
        """

        own, *kinds = (array[: len(graph.species)] for array in (own, *kinds))

        def one(weights, displacement, senders, own, *fixed):
            layer = self.config.layers - 1
            return self.layer(weights, layer, displacement, senders, own, *fixed)[0]

        def over_blocks(function, weights, displacement, senders, own):
            everyone = from_all_devices(senders, self.axis)
            return map_blocks(
                lambda displacement, neighbors, own, *fixed: function(
                    weights, displacement, everyone[neighbors], own, *fixed
                ),
                self.block,
                *(displacement, graph.neighbors, own, graph.species, *kinds),
            )

        @jax.custom_vjp
        def energies(*arguments):
            return over_blocks(one, *arguments)

        def forward(weights, *rows):
            def both(weights, *rows):
                moving, fixed = rows[:3], rows[3:]
                value, pull = jax.vjp(lambda *moving: one(weights, *moving, *fixed), *moving)
                return value, pull(jnp.ones_like(value))

            value, derivatives = over_blocks(both, weights, *rows)
            return value, (weights, derivatives)

        def backward(kept, weight):
            weights, (displacement, slots, own) = kept
            weight = weight.astype(displacement.dtype)
            sums = collect_slots(slots, graph.reverse, weight, self.block, self.axis)
            senders = to_own_devices(sums, self.axis)
            weight = weight[:, None, None]
            return not_numbers(weights), displacement * weight, senders, own * weight

        energies.defvjp(forward, backward)
        return energies(weights, graph.displacement, senders, own)

    def layer(self, weights, layer, displacement, senders, own, species, kinds=None):
        """One layer of a few atoms.

        Args:
          displacement: [n, max_neighbors, 3].
          senders: features of the neighbours, [n, max_neighbors, components, channels]; None in
            the first layer.
          own: what the atoms' previous features add to the new ones, [n, components, channels],
            of the lowest degrees or none.
          species: [n].
          kinds: species of the neighbours, [n, max_neighbors], where they choose the tables.

        Returns:
          energies [n]; features for the neighbours of the next layer, and the atoms' own share
          in it, as above. The last layer gives no features.
        """
        config = self.config
        last = layer == config.layers - 1
        density = self.density(weights, layer, displacement, senders, species, kinds)
        components = [row for degree in density for row in unstack(degree)]
        l_out = 0 if last else config.hidden_l
        features, start = [], 0
        for l in range(l_out + 1):
            basis = jnp.stack(self.product(weights, layer, l, components, species))
            feature = rows_times(basis, weights[f"out_{layer}_{l}"])
            if start < own.shape[1]:
                feature += jnp.moveaxis(own[:, start : start + 2 * l + 1], 1, 0)
            features.append(feature)
            start += 2 * l + 1
        hidden = features[0][0]
        if config.has_hidden_readout(layer):
            hidden = SILU_GAIN * jax.nn.silu(hidden)
        energy = (in_float64(hidden) @ in_float64(weights[f"readout_{layer}"]))[:, 0]
        if last:
            return energy, None, None
        senders = [rows_times(f, weights[f"up_{layer + 1}_{l}"]) for l, f in enumerate(features)]
        own = [
            through_species(feature, weights[f"skip_{layer + 1}_{l}"], species)
            for l, feature in enumerate(features)
            if f"skip_{layer + 1}_{l}" in weights
        ]
        own = own or [features[0][:0]]
        senders, own = (jnp.moveaxis(jnp.concatenate(f), 0, 1) for f in (senders, own))
        return energy, senders, own

    def product(self, weights, layer, l, components, species):
        config, chosen = self.config, []
        for order in range(1, config.correlation + 1):
            weight = weights[f"product_{layer}_{l}_{order}"]  # [n_basis, n_species, channels]
            if self.n_species > 1:
                weight = rows_of_species(weight, species)
            chosen.append(weight)
        return symmetric_product(components, chosen, config.l_max, l)

    def density(self, weights, layer, displacement, senders, species, kinds):
        """Mixed and normalised sums over the neighbours, for each degree [2l + 1, n, channels]."""
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
        pair, n_pairs = self.pair(species, kinds)
        which, n_tables = (pair, n_pairs) if layer > 0 else self.first_pair(species, kinds)
        sums = self.neighbor_sums(tables, routes, which, n_tables, distance, edges, senders)
        if config.has_density(layer):
            crowding = self.sum_table(weights[f"density_{layer}"], pair, n_pairs, distance)
            sums = [s / (1 + crowding)[:, None, None] for s in sums]

        if layer == 0 and self.n_species > 1:
            return [jnp.moveaxis(s, 1, 0) for s in sums]
        if layer == 0:
            parts = jax.lax.split(jnp.moveaxis(sums[0], 1, 0), sizes, axis=0)
        else:
            parts = [
                [s for s, route in zip(sums, routes) if route[2] == l] for l in range(len(sizes))
            ]
            parts = [jnp.moveaxis(jnp.concatenate(p, axis=-1), 1, 0) for p in parts]
        mixed = [rows_times(p, weights[f"mix_{layer}_{l}"]) for l, p in enumerate(parts)]
        if f"select_{layer}_0" not in weights:
            return mixed
        return [
            through_species(m, weights[f"select_{layer}_{l}"], species) for l, m in enumerate(mixed)
        ]

    def pair(self, species, kinds):
        """Index of the two species where radial functions depend on them, and their number."""
        if not self.by_pair:
            return 0, 1
        high = jnp.maximum(species[:, None], kinds)
        low = jnp.minimum(species[:, None], kinds)
        return high * (high + 1) // 2 + low, self.n_species * (self.n_species + 1) // 2

    def first_pair(self, species, kinds):
        """The same in the first layer, whose tables hold the neighbours' features too.

        They tell atoms apart where the radial functions do, and where the sums are mixed by them.
        """
        n_species = self.n_species
        if n_species == 1:
            return 0, 1
        if self.config.is_residual(0) and not self.by_pair:
            return kinds, n_species
        return species[:, None] * n_species + kinds, n_species**2

    def sum_table(self, table, which, n_tables, distance):
        """Σ over neighbours of one function of the distance, [n]."""
        rows = len(table) // n_tables
        row, weights, _ = spline_weights(
            distance, self.config.cutoff, self.config.cutoff_order, rows - DEGREE
        )
        return spline(table, row + which * rows, weights)[..., 0].sum(axis=1)

    def neighbor_sums(self, tables, routes, which, n_tables, distance, edges, senders):
        """Σ over neighbours of edge tensor × radial functions × features, for each route.

        The reverse pass looks the functions up again rather than keep them, and finds the
        derivative by the distance from a look-up of their slopes.

        Args:
          tables: for each route [n_tables x rows, channels].
          which: of the tables in a row a neighbour needs, [n, max_neighbors] or 0.
          edges: [n, 2 l3 + 1, max_neighbors, 2 l1 + 1] each.
          senders: for each degree l1 [n, max_neighbors, 2 l1 + 1, channels], or None.

        Returns:
          [n, 2 l3 + 1, channels] for each route.
        """

        rows = len(tables[0]) // n_tables
        first = which * rows

        def look_up(tables, distance, first, slopes):
            row, *weights = spline_weights(
                distance, self.config.cutoff, self.config.cutoff_order, rows - DEGREE
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
                jnp.einsum("nec,nmc->nme", message, pull, precision="highest").reshape(edge.shape)
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
    """NaN gradients for folded constants, so that using them fails visibly."""
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
