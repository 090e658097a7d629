"""A potential for jax-md: energy and neighbour functions in its calling convention.

What jax-md does otherwise is undone here and nowhere else: its boxes have lattice vectors as
columns, its positions may be fractional and are wrapped back into the box at every step.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from mlip.data.neighbors import complete_cell
from mlip.data.structure import from_ase, to_ase
from mlip.model.blocks import gather_senders
from mlip.model.fold import fold
from mlip.simulation.neighbors import Grid, Neighbors, Room, plan, search, times


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NeighborList:
    """Neighbours of one structure, as jax-md hands them on."""

    table: Neighbors
    grid: Grid
    room: Room = field(metadata={"static": True})
    space: "Space" = field(metadata={"static": True})

    @property
    def did_buffer_overflow(self):
        """True if pairs are missing; the energy is then not a number until `allocate`."""
        return ~self.table.complete

    def update(self, positions, box=None, **_):
        """Neighbours at new positions; found anew only if the old ones no longer hold."""
        here, cell = self.space.real(positions, box, self.table)
        table = jax.lax.cond(
            # jax-md takes the next step with these neighbours before it asks for new ones.
            self.space.hold(self.table, here, cell, self.space.skin / 2),
            lambda: self.table,
            lambda: self.space.search(search.inside, self.grid, self.room, here, cell),
        )
        return NeighborList(table, self.grid, self.room, self.space)


@dataclass(frozen=True)
class Space:
    """How jax-md writes down the positions of one structure."""

    cell: tuple  # rows, Å, of a box that is not given
    pbc: tuple
    fractional: bool
    cutoff: float  # Å
    skin: float  # Å

    def real(self, positions, box, table=None):
        """Positions [1, n_atoms, 3] and cell [1, 3, 3] in Å, rows.

        Where a table is given, atoms stand in the periodic image nearest to where it found them.
        """
        dtype = positions.dtype
        cell = jnp.asarray(self.cell, dtype)
        if box is not None:
            box = jnp.asarray(box, dtype)
            box = box if box.ndim == 2 else jnp.eye(3, dtype=dtype) * box
            cell = jnp.where(jnp.asarray(self.pbc)[:, None], box.T, cell)
        places = positions if self.fractional else times(positions, jnp.linalg.inv(cell))
        if table is not None:
            before = times(table.positions[0], jnp.linalg.inv(table.cell[0]))
            turns = jax.lax.stop_gradient(jnp.round(places - before))
            turns = jnp.where(jnp.isfinite(turns) & jnp.asarray(self.pbc), turns, 0.0)
            places, positions = places - turns, positions - times(turns, cell)
        return (from_fractional(places, cell) if self.fractional else positions)[None], cell[None]

    def hold(self, table, positions, cell, skin):
        return table.complete & table.hold(positions, cell, self.cutoff, skin)

    def search(self, find, grid, room, positions, cell):
        real = jnp.ones(positions.shape[:2], bool)
        return find(self.cutoff + self.skin, room, grid, positions, cell, real)


@jax.custom_jvp
def from_fractional(places, cell):
    """Positions in Å, whose derivative by fractional ones is one, as in `jax_md.space`.

    So jax-md finds forces in eV/Å, whichever way it writes down positions.
    """
    return times(places, cell)


@from_fractional.defjvp
def _(primals, tangents):
    (places, cell), (moved, strained) = primals, tangents
    return times(places, cell), moved + times(places, strained)


@dataclass(frozen=True)
class NeighborListFns:
    """`allocate` and `update` as in `jax_md.partition`."""

    space: Space
    structure: object  # `Structure`

    def allocate(self, positions, extra_capacity=0, box=None, **_):
        """A `NeighborList` with room for these positions; not to be compiled.

        Args:
          positions: [n_atoms, 3], Å or fractional.
          extra_capacity: slots of an atom to add.
          box: [3, 3] with lattice vectors as columns, or the edge of a cube; Å.
        """
        here, cell = self.space.real(jnp.asarray(positions), box)
        atoms = to_ase(self.structure)
        atoms.set_cell(np.where(self.structure.pbc[:, None], np.asarray(cell[0]), atoms.cell.array))
        atoms.set_positions(np.asarray(here[0]))
        grid, room = plan(
            [from_ase(atoms, self.structure.name)], self.space.cutoff, self.space.skin
        )
        room = replace(room, neighbors=room.neighbors + extra_capacity)
        dtype = here.dtype
        grid = Grid(grid.counts, grid.low.astype(dtype), grid.length.astype(dtype), grid.periodic)
        grid = jax.device_put(grid)
        table = self.space.search(search, grid, room, here, cell)
        return NeighborList(table, grid, room, self.space)

    def update(self, positions, neighbors, box=None, **_):
        """The same list at new positions; see `NeighborList.update`."""
        return neighbors.update(positions, box)


def neighbor_fn(potential, structure, fractional_coordinates=False, skin=0.5):
    """Functions that find neighbours for `energy_fn`, in place of jax-md's own.

    They are right for any cell, also one smaller than the cutoff, and for atoms anywhere.

    Args:
      potential: a `Potential`.
      structure: a `Structure` with the species, the periodic axes and the box, if none is given.
      fractional_coordinates: as in `jax_md.space.periodic_general`.
      skin: Å, jax-md's `dr_threshold`.

    Returns:
      an object with `allocate(positions, extra_capacity=0, box=None)` and
      `update(positions, neighbors, box=None)`, the second of which can be compiled.

    Raises:
      ValueError: a skin that is not positive.
    """
    if not (np.isfinite(skin) and skin > 0):
        raise ValueError(f"skin is {skin} Å; it must be positive (0.5 Å is usual)")
    cell = tuple(map(tuple, complete_cell(structure.cell, structure.pbc).tolist()))
    pbc = tuple(structure.pbc.tolist())
    space = Space(cell, pbc, fractional_coordinates, potential.cutoff, float(skin))
    return NeighborListFns(space, structure)


def energy_fn(potential, structure, folded=True):
    """jax-md's `energy_fn(positions, neighbor, box=None, perturbation=None)`, eV.

    Differentiate it by the positions for forces and by a perturbation of the box for the stress,
    as jax-md's `quantity` and `simulate` do.

    Args:
      potential: a `Potential`; its precision is that of the energy.
      structure: a `Structure` with the species.
      folded: compute with the folded potential (see `mlip.fold`), several times faster.

    Returns:
      the function. Its energy lacks the baseline of single atoms, `potential.baseline(structure)`.
      Energy and derivatives are not numbers where neighbours may be missing: after an overflow,
      or when atoms have moved too far since `update`.

    Raises:
      ValueError: an element that the potential does not know.
    """
    potential.require_local("jax-md's calling convention")
    species = potential.species_of(structure)
    if folded:
        potential = fold(potential, set(structure.numbers.tolist()))
        species = potential.species_of(structure)
    surface, weights, dtype = potential.surface, potential.weights, potential.dtype

    def energy(positions, neighbor, box=None, perturbation=None, **_):
        table, space = neighbor.table, neighbor.space
        here, cell = space.real(positions, box, table)
        still, steady = jax.lax.stop_gradient((here, cell))
        graph = table.graph(jnp.asarray(species)[None], 0 * table.shifts, jnp.ones(1))
        senders = gather_senders(here[0], graph)
        crossed = times(table.shifts[0].astype(cell.dtype), cell[0])
        vectors = senders - here[0][:, None] + crossed
        if perturbation is not None:
            perturbation = jnp.asarray(perturbation)
            stretched = perturbation.ndim == 2
            vectors = times(vectors, perturbation.T) if stretched else vectors * perturbation
        far = jnp.asarray((2 * space.cutoff, 0, 0), vectors.dtype)
        vectors = jnp.where(table.used[0, ..., None], vectors, far)
        graph = replace(graph, displacement=vectors.astype(dtype))
        total = surface.outputs(weights, graph).energies.sum().astype(positions.dtype)
        # A factor, so that the derivative is not a number either.
        return total * jnp.where(space.hold(table, still, steady, space.skin), 1.0, jnp.nan)

    return energy
