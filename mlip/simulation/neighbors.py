"""Neighbour tables found on the device, for systems that move: any cell, any mix of axes.

Atoms are sorted into bins along the lattice vectors, and every atom looks at the bins around its
own, through as many periodic images as the cutoff asks for. Sizes of arrays are fixed when a
program is compiled; a search that does not fit says so, and says what it would need, and
`plan` makes room. No table is ever used that lacks a pair.

Several systems of different sizes lie side by side, each with its own cell; a leading axis counts
them.
"""

import functools
import itertools
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from mlip.data.graph import Graph, build_table
from mlip.data.neighbors import complete_cell, heights
from mlip.model.blocks import first_reaching, map_blocks
from mlip.model.potential import round_up
from mlip.programs import program

MOST_CANDIDATES = 20_000  # an atom looks at; more means that a cell or its atoms have collapsed
SEARCHED_AT_ONCE = 2048  # atoms, so that a search of many takes little memory
OUTSIDE = (0.01, 0.05, 0.2)  # shares of atoms beyond the bins, where a few are far from the others
MOST_GROWTH = 8  # of a table at once, beyond which atoms have collapsed


@dataclass(frozen=True)
class Room:
    """Sizes that a compiled search has room for."""

    neighbors: int  # slots of an atom, for what the search finds
    within: int  # slots of an atom, for those closer than the cutoff without the skin
    members: int  # atoms in a bin
    bins: int
    reach: tuple[int, int, int]  # bins looked at to either side, along each lattice vector

    def joined(self, other):
        """Room for what either has room for."""
        reach = tuple(max(pair) for pair in zip(self.reach, other.reach))
        sizes = ("neighbors", "within", "members", "bins")
        return Room(*(max(getattr(self, n), getattr(other, n)) for n in sizes), reach)


NO_ROOM = Room(1, 1, 1, 1, (0, 0, 0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grid:
    """The bins of each system, laid along its lattice vectors."""

    counts: jax.Array  # [n_systems, 3] bins along each vector
    low: jax.Array  # [n_systems, 3] fractional coordinate where the first bin begins
    length: jax.Array  # [n_systems, 3] fractional length of all bins together
    periodic: jax.Array  # [n_systems, 3] True along periodic axes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Neighbors:
    """Tables of neighbours as in `mlip.data.graph`, and where the atoms were when found."""

    neighbors: jax.Array  # [n_systems, n_atoms, max_neighbors] sender; unused: the atom itself
    reverse: jax.Array  # likewise, flat slot of the opposite edge within the system
    shifts: jax.Array  # [n_systems, n_atoms, max_neighbors, 3] lattice vectors crossed
    used: jax.Array  # [n_systems, n_atoms, max_neighbors] True where the slot holds an edge
    positions: jax.Array  # [n_systems, n_atoms, 3] Å
    cell: jax.Array  # [n_systems, 3, 3] Å
    needed: jax.Array  # [n_systems, 2] slots of an atom, and seats in a bin, that the search wanted
    complete: jax.Array  # False if there was no room for them

    def displacement(self, positions, cell, far):
        """Edge vectors, [n_systems, n_atoms, max_neighbors, 3] Å; `far` in unused slots."""
        senders = jax.vmap(lambda rows, index: rows[index])(positions, self.neighbors)
        # Written out, so that a pair and its reverse are opposite to the last bit.
        crossed = _combine(self.shifts.astype(cell.dtype), cell[:, None, None])
        vectors = (senders - positions[:, :, None]) + crossed
        return jnp.where(self.used[..., None], vectors, jnp.asarray((far, 0, 0), cell.dtype))

    def graph(self, species, displacement, volume):
        """`Graph` of all systems one after another.

        Args:
          species: [n_systems, n_atoms].
          displacement: as above.
          volume: [n_systems], Å³.
        """
        n_systems, n_atoms, width = self.neighbors.shape
        first = jnp.arange(n_systems, dtype=jnp.int32)[:, None, None] * n_atoms
        rows = n_systems * n_atoms
        return Graph(
            species=species.reshape(rows),
            structure=jnp.repeat(jnp.arange(n_systems, dtype=jnp.int32), n_atoms),
            neighbors=(self.neighbors + first).reshape(rows, width),
            reverse=(self.reverse + first * width).reshape(rows, width),
            displacement=displacement.reshape(rows, width, 3),
            volume=volume,
            n_atoms=jnp.full(n_systems, n_atoms, jnp.int32),
        )

    def hold(self, positions, cell, cutoff, skin):
        """True while the tables have every pair within the cutoff.

        Found within cutoff + skin, a table holds until a pair could have come from outside. What
        the cell's strain does to all atoms alike counts once, as the stretch of a vector; what
        atoms moved besides counts twice, for the two of a pair.
        """
        strain = times(jnp.linalg.inv(self.cell), cell)
        back = jnp.linalg.inv(strain)
        own = positions - times(self.positions, strain)
        own -= own.mean(axis=1, keepdims=True)
        farthest = jnp.sqrt((own**2).sum(axis=-1).max(axis=1))
        stretch = jnp.sqrt(
            jnp.abs(back).sum(axis=1).max(axis=1) * jnp.abs(back).sum(axis=2).max(axis=1)
        )  # bounds the spectral norm
        return ((cutoff + 2 * farthest) * stretch < cutoff + skin).all()


def times(left, right):
    """Product of matrices in all digits, which GPUs leave out in float32 where not told."""
    return jnp.matmul(left, right, precision="highest")


def _combine(numbers, vectors):
    """Σ_k numbers_k vectors_k for numbers [..., 3] and vectors [..., 3, 3]."""
    return (
        numbers[..., 0:1] * vectors[..., 0, :]
        + numbers[..., 1:2] * vectors[..., 1, :]
        + numbers[..., 2:3] * vectors[..., 2, :]
    )


@program(static_argnums=(1, 2))
def narrow(graph, cutoff, width):
    """The same graph with only the edges that are shorter than the cutoff, in narrower rows.

    Args:
      cutoff: Å.
      width: slots of an atom.

    Returns:
      `Graph`, and how many slots an atom would need, [n_atoms]; where that is more than `width`
      edges are missing.
    """
    near = (graph.displacement**2).sum(axis=-1) < cutoff**2
    near = near & near.ravel()[graph.reverse]  # should the two ever be rounded differently
    counted = jnp.cumsum(near, axis=1, dtype=jnp.int32)
    wanted = jnp.arange(1, width + 1, dtype=jnp.int32)
    chosen = jax.vmap(first_reaching, (0, None))(counted, wanted)
    chosen = jnp.minimum(chosen, near.shape[1] - 1)
    used = wanted <= counted[:, -1:]
    index = jnp.arange(len(near), dtype=jnp.int32)[:, None]
    row, place = jnp.divmod(jnp.take_along_axis(graph.reverse, chosen, axis=1), near.shape[1])
    reverse = row * width + counted[row, place] - 1
    vectors = jnp.take_along_axis(graph.displacement, chosen[..., None], axis=1)
    far = jnp.asarray((2 * cutoff, 0, 0), vectors.dtype)
    narrower = replace(
        graph,
        neighbors=jnp.where(used, jnp.take_along_axis(graph.neighbors, chosen, axis=1), index),
        reverse=jnp.where(used, reverse, index * width + wanted - 1),
        displacement=jnp.where(used[..., None], vectors, far),
    )
    return narrower, counted[:, -1]


def with_spare(slots):
    """Slots of an atom within the cutoff to make room for, with some for fluctuations."""
    return int(slots + 2 + slots // 16)


def plan(structures, cutoff, skin=0.0):
    """Bins and room for a search around these structures, with some to spare.

    Args:
      cutoff: Å, of the network.
      skin: Å beyond the cutoff within which neighbours are found.

    Returns:
      `Grid` in NumPy arrays and `Room`.

    Raises:
      ValueError: see `mlip.data.neighbors.neighbor_list`.
      FloatingPointError: a cell so small that an atom would meet thousands of images.
    """
    grids, room, reached = [], NO_ROOM, cutoff + skin
    for structure in structures:
        bins = _lay_bins(structure, reached, 0.0)
        for outside in () if structure.pbc.all() else OUTSIDE:
            # Worth it where a few atoms are so far away that all others would share a few bins.
            other = _lay_bins(structure, reached, outside)
            bins = min(bins, other, key=lambda one: one.candidates * (1 + (one is other)))
        if bins.candidates > MOST_CANDIDATES:
            across = heights(complete_cell(structure.cell, structure.pbc))
            raise FloatingPointError(
                f"{structure.name}: {bins.members} atoms in a cell of "
                f"{np.round(across, 2).tolist()} Å across have too many images within "
                f"{reached:.2f} Å; the cell or its atoms have collapsed"
            )
        table = build_table(structure, reached)
        vectors = table.displacement(structure.positions, structure.cell, reached)
        within = ((vectors**2).sum(axis=-1) < cutoff**2).sum(axis=1).max()
        n_bins = int(bins.counts.prod())
        spare = 0 if n_bins == 1 else 2 + bins.members // 5
        room = room.joined(
            Room(
                round_up(math.ceil(1.1 * table.neighbors.shape[1])),
                with_spare(within),
                bins.members + spare,
                n_bins,
                tuple(bins.reach.tolist()),
            )
        )
        grids.append((bins.counts, bins.low, bins.length, structure.pbc))
    counts, low, length, pbc = (np.array(column) for column in zip(*grids))
    return Grid(counts.astype(np.int32), low, length, pbc), room


@dataclass(frozen=True)
class Bins:
    """The bins of one structure, and what an atom meets there."""

    counts: np.ndarray  # [3]
    low: np.ndarray  # [3] fractional
    length: np.ndarray  # [3] fractional
    reach: np.ndarray  # [3] bins to either side
    members: int  # of the fullest bin

    @property
    def candidates(self):
        return math.prod((2 * self.reach + 1).tolist()) * self.members


def _lay_bins(structure, reached, outside):
    """`Bins` over all atoms but a share of them beyond either end of each free axis.

    Those beyond are in the last bins, which go on without end.
    """
    cell, pbc = complete_cell(structure.cell, structure.pbc), structure.pbc
    fractional, across = structure.positions @ np.linalg.inv(cell), heights(cell)
    first, last = np.quantile(fractional, [outside, 1 - outside], axis=0)
    low = np.where(pbc, 0.0, first)
    length = np.where(pbc, 1.0, np.maximum(last - first, 1e-3))
    counts = np.maximum((length * across / reached).astype(int), 1)
    counts = np.where(~pbc & (counts <= 2), 1, counts)  # two bins would both be looked at
    # A bin holds an atom or more in most cells: emptier bins only cost time.
    while counts.prod() > max(len(structure), 1):
        counts[counts.argmax()] -= 1
    # Room for a cell that shrinks by a hundredth before bins are planned anew.
    width = 0.99 * length * across / counts
    reach = np.where(pbc | (counts > 1), np.ceil(reached / width), 0).astype(int)
    reach = np.where(pbc, reach, np.minimum(reach, counts - 1))
    places = np.floor((fractional - np.where(pbc, np.floor(fractional), low)) / length * counts)
    places = np.clip(places, 0, counts - 1).astype(int)
    members = int(np.unique(places, axis=0, return_counts=True)[1].max())
    return Bins(counts, low, length, reach, members)


def make_room(structures, cutoff, skin, room, needed):
    """Bins and room for systems that found none, no smaller than before.

    Tables do not shrink, so that the program changes as seldom as can be.

    Args:
      structures: where the systems are.
      cutoff, skin: Å, see `plan`.
      room: `Room` that there was.
      needed: [n_systems, 3] slots of an atom, seats in a bin, and slots of an atom within the
        cutoff, that were wanted.

    Returns:
      `Grid` in NumPy arrays and `Room`.

    Raises:
      ValueError, FloatingPointError: see `plan`; or atoms have many times the neighbours they had.
    """
    slots, members, within = np.asarray(needed).max(axis=0).tolist()
    if slots > MOST_GROWTH * room.neighbors:
        raise FloatingPointError(
            f"an atom has {slots} neighbours within {cutoff + skin:.2f} Å; the cell or its atoms "
            "have collapsed"
        )
    grid, planned = plan(structures, cutoff, skin)
    return grid, Room(
        neighbors=max(planned.neighbors, room.neighbors, round_up(math.ceil(1.1 * slots))),
        within=max(planned.within, room.within, with_spare(within)),
        members=max(planned.members, members + 2 + members // 5),
        bins=planned.bins,
        reach=planned.reach,
    )


@program(static_argnums=(0, 1))
def search(cutoff, room, grid, positions, cell, real):
    """All neighbours of every atom.

    Args:
      cutoff: Å, the skin included.
      room: `Room`.
      grid: `Grid`.
      positions: [n_systems, n_atoms, 3] Å, anywhere.
      cell: [n_systems, 3, 3] Å, rows along non-periodic axes as `complete_cell` gives them.
      real: [n_systems, n_atoms] False for padding, which has no neighbours.

    Returns:
      `Neighbors`.
    """
    find = functools.partial(_search_one, cutoff, room)
    neighbors, reverse, shifts, used, slots, members, deep = jax.vmap(find)(
        grid, positions, cell, real
    )
    needed = jnp.stack([slots, members], axis=1)
    complete = (needed <= jnp.asarray((room.neighbors, room.members))).all() & deep.all()
    return Neighbors(neighbors, reverse, shifts, used, positions, cell, needed, complete)


def _search_one(cutoff, room, grid, positions, cell, real):
    n_atoms, size = len(positions), room.members
    inverse = jnp.linalg.inv(cell)
    fractional = times(positions, inverse)
    turns = jnp.where(grid.periodic, jnp.floor(fractional), 0.0)
    wrapped = positions - _combine(turns, cell)
    turns = turns.astype(jnp.int32)
    place = (fractional - turns - grid.low) / grid.length * grid.counts
    # Beyond its ends a grid along a non-periodic axis goes on as its last bins.
    place = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, grid.counts - 1)
    bin_of = (place[:, 0] * grid.counts[1] + place[:, 1]) * grid.counts[2] + place[:, 2]
    bin_of = jnp.where(real, bin_of, room.bins)

    order = jnp.argsort(bin_of).astype(jnp.int32)
    begins = jnp.searchsorted(bin_of[order], jnp.arange(room.bins + 1)).astype(jnp.int32)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(n_atoms, dtype=jnp.int32))
    rank = rank - begins[bin_of]
    occupied = begins[1:] - begins[:-1]
    seat = begins[:-1, None] + jnp.arange(size, dtype=jnp.int32)
    filled = jnp.arange(size) < occupied[:, None]
    members = jnp.where(filled, order[jnp.minimum(seat, n_atoms - 1)], n_atoms)  # [bins, size]
    everyone = jnp.concatenate([wrapped, jnp.full((1, 3), jnp.inf, wrapped.dtype)])
    seats = everyone[members]  # [bins, size, 3]

    # A bin and its opposite stand at mirrored places of this list.
    offsets = np.array(list(itertools.product(*(range(-r, r + 1) for r in room.reach))), np.int32)
    n_offsets = len(offsets)

    def look(index, place, here, exists):
        """Which candidates of some atoms are neighbours, counted from left to right."""
        raw = place[:, None] + offsets
        image = raw // grid.counts
        target = raw - image * grid.counts
        allowed = (grid.periodic | (image == 0)).all(axis=-1) & exists[:, None]
        target = (target[..., 0] * grid.counts[1] + target[..., 1]) * grid.counts[2] + target[
            ..., 2
        ]
        crossed = _combine(image.astype(cell.dtype), cell)
        vectors = (seats[target] - here[:, None, None]) + crossed[:, :, None]
        near = (vectors**2).sum(axis=-1) < cutoff**2
        itself = (members[target] == index[:, None, None]) & (image == 0).all(axis=-1)[..., None]
        near = (near & allowed[..., None] & ~itself).reshape(len(index), -1)
        counted = jnp.cumsum(near, axis=1, dtype=jnp.int32)
        wanted = jnp.arange(1, room.neighbors + 1, dtype=jnp.int32)
        chosen = jax.vmap(first_reaching, (0, None))(counted, wanted)
        chosen = jnp.minimum(chosen, n_offsets * size - 1)
        offset = chosen // size
        bins = jnp.take_along_axis(target, offset, axis=1)
        images = jnp.take_along_axis(image, offset[..., None], axis=1)
        return counted, chosen, members[bins, chosen % size], images

    index = jnp.arange(n_atoms, dtype=jnp.int32)
    rows = (index, place, wrapped, real)
    counted, chosen, neighbors, images = map_blocks(look, SEARCHED_AT_ONCE, *rows)
    found = counted[:, -1]
    used = jnp.arange(room.neighbors) < found[:, None]
    neighbors = jnp.where(used, neighbors, index[:, None])
    opposite = (n_offsets - 1 - chosen // size) * size + rank[:, None]
    opposite = jnp.clip(opposite, 0, n_offsets * size - 1)
    slot = counted[neighbors, opposite] - 1
    own = index[:, None] * room.neighbors + jnp.arange(room.neighbors, dtype=jnp.int32)
    reverse = jnp.where(used, neighbors * room.neighbors + slot, own)
    shifts = jnp.where(used[..., None], images + turns[:, None] - turns[neighbors], 0)
    # Bins must still be wide enough that those within reach cover the cutoff.
    heights = 1 / jnp.sqrt((inverse**2).sum(axis=0))
    width = heights * grid.length / grid.counts
    everything = ~grid.periodic & (jnp.asarray(room.reach) >= grid.counts - 1)
    deep = (everything | (jnp.asarray(room.reach) * width >= cutoff)).all()
    return neighbors, reverse, shifts, used, found.max(), occupied.max(), deep
