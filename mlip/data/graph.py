"""Graph and Labels: structures as arrays for the device, padded to a few shapes.

Conventions, written once here and kept everywhere:

- Rows of `cell` are the lattice vectors. displacement = positions[sender] + shift @ cell
  − positions[receiver].
- Neighbours lie in a table with a row per receiver. Each slot also holds the slot of the edge that
  runs the other way, so that sums over senders are gathers too.
- A padded slot holds a displacement of twice the cutoff, where every function of the network is
  exactly zero; the network needs no mask. Atoms of padding belong to the last, unused structure.
- Energies eV, lengths Å, forces eV/Å, stress eV/Å³ as a full 3 x 3 tensor with ASE's sign.
"""

from dataclasses import dataclass, replace

import jax
import numpy as np

from mlip.data.neighbors import neighbor_list
from mlip.data.quantities import DERIVED, QUANTITIES


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Graph:
    """A batch of structures: atoms, and for each atom a table of its neighbours."""

    species: jax.Array  # [n_atoms] index into the potential's species, 0-based
    structure: jax.Array  # [n_atoms] index of the structure an atom belongs to
    neighbors: jax.Array  # [n_atoms, max_neighbors] the sender of each edge
    reverse: jax.Array  # [n_atoms, max_neighbors] flat slot of the opposite edge, or its own
    displacement: jax.Array  # [n_atoms, max_neighbors, 3] Å, from receiver to sender
    volume: jax.Array  # [n_structures] Å³; infinite where no volume is defined
    n_atoms: jax.Array  # [n_structures] atoms of each structure; 0 for padding
    # [n_atoms, max_neighbors] where senders may be on other devices: `evaluate_spread` sets it.
    sender_species: jax.Array | None = None
    # Where a term without a cutoff needs them.
    positions: jax.Array | None = None  # [n_atoms, 3] Å
    cell: jax.Array | None = None  # [n_structures, 3, 3] Å; zero along axes without a vector

    def species_of_senders(self):
        """Species of the sender in every slot, [n_atoms, max_neighbors]."""
        return self.species[self.neighbors] if self.sender_species is None else self.sender_species


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Labels:
    """What a batch is trained on, by the names of the quantities."""

    # [n_structures, ...] or [n_atoms, ...]; energies without the baseline of the single atoms.
    values: dict[str, jax.Array]
    # [n_structures] or [n_atoms]; 0 for a label that is absent, or padding.
    weights: dict[str, jax.Array]


@dataclass(frozen=True)
class Table:
    """The neighbours of one structure on the host, in float64 and without padding."""

    neighbors: np.ndarray  # [n_atoms, max_neighbors]; unused slots hold the atom itself
    reverse: np.ndarray  # [n_atoms, max_neighbors] flat slot of the opposite edge
    shifts: np.ndarray  # [n_atoms, max_neighbors, 3] lattice vectors crossed, integers
    used: np.ndarray  # [n_atoms, max_neighbors] True where the slot holds an edge

    def displacement(self, positions, cell, cutoff):
        """Edge vectors at these positions, [n_atoms, max_neighbors, 3]; padding at 2 cutoff."""
        # Written out, so that an edge and its reverse are opposite to the last bit.
        crossed = sum(self.shifts[..., axis, None] * cell[axis] for axis in range(3))
        vectors = (positions[self.neighbors] - positions[:, None]) + crossed
        return np.where(self.used[..., None], vectors, (2.0 * cutoff, 0.0, 0.0))

    def size(self):
        """Atoms and slots a row, as they enter a padded shape."""
        return self.neighbors.shape


def build_table(structure, cutoff):
    """Table of all neighbours of a structure within the cutoff (Å)."""
    return arrange(len(structure), *neighbor_list(structure, cutoff))


def arrange(n_atoms, receivers, senders, shifts, width=1):
    """Table of edges, each with its opposite among them.

    Args:
      receivers, senders: [n_edges] rows below `n_atoms`, sorted by receiver.
      shifts: [n_edges, 3] integers.
      width: slots a row at least.
    """
    n_edges = len(receivers)
    counts = np.bincount(receivers, minlength=n_atoms)
    width = max(int(counts.max()), width)
    first = np.cumsum(counts) - counts
    slots = receivers * width + np.arange(n_edges) - first[receivers]

    # Sorted by (receiver, sender, shift) and by the same of the opposite edge, edges pair up.
    forward = np.lexsort((*shifts.T, senders, receivers))
    backward = np.lexsort((*-shifts.T, receivers, senders))
    opposite = np.empty(n_edges, int)
    opposite[forward] = backward

    neighbors = np.repeat(np.arange(n_atoms), width)
    reverse = np.arange(n_atoms * width)
    table_shifts = np.zeros((n_atoms * width, 3), int)
    used = np.zeros(n_atoms * width, bool)
    neighbors[slots], reverse[slots], used[slots] = senders, slots[opposite], True
    table_shifts[slots] = shifts
    shape = (n_atoms, width)
    return Table(
        neighbors.reshape(shape),
        reverse.reshape(shape),
        table_shifts.reshape(*shape, 3),
        used.reshape(shape),
    )


@dataclass(frozen=True)
class Shape:
    """Sizes of a padded batch; one compiled program each."""

    n_atoms: int
    max_neighbors: int
    n_structures: int  # including the last one, which owns the padding


def pad(frames, shape, cutoff, dtype=np.float32, whole=False):
    """One `Graph` of several structures, in NumPy arrays.

    Args:
      frames: list of (species [n_atoms], structure, table).
      shape: a `Shape` with room for all atoms and one structure more.
      cutoff: Å, for the displacement of padding.
      dtype: of all floating-point arrays. Displacements are taken in float64 and then rounded.
      whole: with positions and cell, which terms without a cutoff need.
    """
    n_atoms, width = shape.n_atoms, shape.max_neighbors
    species = np.zeros(n_atoms, np.int32)
    owner = np.full(n_atoms, shape.n_structures - 1, np.int32)
    neighbors = np.repeat(np.arange(n_atoms, dtype=np.int32)[:, None], width, axis=1)
    reverse = np.arange(n_atoms * width, dtype=np.int32).reshape(n_atoms, width)
    displacement = np.zeros((n_atoms, width, 3), dtype)
    displacement[..., 0] = 2 * cutoff
    volume = np.full(shape.n_structures, np.inf, dtype)
    counts = np.zeros(shape.n_structures, np.int32)
    positions, cell = np.zeros((n_atoms, 3), dtype), np.zeros((shape.n_structures, 3, 3), dtype)
    start = 0
    for index, (kinds, structure, table) in enumerate(frames):
        stop, columns = start + len(structure), table.neighbors.shape[1]
        species[start:stop], owner[start:stop] = kinds, index
        neighbors[start:stop, :columns] = table.neighbors + start
        rows, places = np.divmod(table.reverse, columns)
        reverse[start:stop, :columns] = (rows + start) * width + places
        displacement[start:stop, :columns] = table.displacement(
            structure.positions, structure.cell, cutoff
        )
        volume[index], counts[index] = structure.volume, len(structure)
        positions[start:stop], cell[index] = structure.positions, structure.cell
        start = stop
    graph = Graph(species, owner, neighbors, reverse, displacement, volume, counts)
    return replace(graph, positions=positions, cell=cell) if whole else graph


def pad_labels(structures, baselines, shape, dtype=np.float32, names=DERIVED):
    """`Labels` of the structures of a batch; what a structure lacks has weight 0.

    Args:
      baselines: energy to subtract from each structure's label in float64, eV: an energy of
        -9391 eV has a spacing of 1 meV in float32.
      names: of the quantities.
    """
    values, weights = {}, {}
    for name in names:
        row = QUANTITIES[name]
        n_rows = shape.n_structures if row.of == "structure" else shape.n_atoms
        values[name] = np.zeros((n_rows, *row.shape), dtype)
        weights[name] = np.zeros(n_rows, dtype)
    start = 0
    for index, (structure, baseline) in enumerate(zip(structures, baselines)):
        stop = start + len(structure)
        for name in names:
            label = structure.label(name)
            if label is None or (name == "stress" and not np.isfinite(structure.volume)):
                continue
            label = label - baseline if name == "energy" else label
            rows = index if QUANTITIES[name].of == "structure" else slice(start, stop)
            values[name][rows], weights[name][rows] = label, 1
        start = stop
    return Labels(values, weights)


def pack(sizes, order, batch_size, max_atoms, max_slots):
    """Cut an order of frames into batches within all three limits.

    Args:
      sizes: (atoms, slots a row) of every frame.
      order: indices of frames, in the order they are to be visited.

    Returns:
      Lists of indices. A frame beyond the limits stands alone.
    """
    batches, current, atoms, width = [], [], 0, 0
    for index in order:
        n, k = sizes[index]
        full = len(current) == batch_size or atoms + n > max_atoms
        if current and (full or (atoms + n) * max(width, k) > max_slots):
            batches.append(current)
            current, atoms, width = [], 0, 0
        current.append(index)
        atoms, width = atoms + n, max(width, k)
    return [*batches, current] if current else batches


@dataclass(frozen=True)
class Ladder:
    """The few sizes that batches are padded to, and the limits they are packed within."""

    batch_size: int
    atoms: tuple[int, ...]  # ascending
    widths: tuple[int, ...]  # ascending
    max_atoms: int  # in a batch of more than one frame
    max_slots: int  # likewise

    def shape(self, n_atoms, width):
        """The smallest shape of the ladder that holds a batch."""
        return Shape(
            next(a for a in self.atoms if a >= n_atoms),
            next(w for w in self.widths if w >= width),
            self.batch_size + 1,
        )

    def pack(self, sizes, order):
        return pack(sizes, order, self.batch_size, self.max_atoms, self.max_slots)


def plan_ladder(sizes, batch_size, max_atoms=None):
    """Choose at most three sizes for atoms and two for neighbours, so that few programs compile.

    Args:
      sizes: (atoms, slots a row) of every frame.
      batch_size: the most frames in a batch.
      max_atoms: the most atoms in a batch; by default room for `batch_size` frames of one and a
        half times the mean size, and for 99 of 100 single frames. A larger frame stands
        alone, in a size of its own.
    """
    atoms, widths = np.array(sizes).T
    batch_size = min(batch_size, len(sizes))
    usual = int(max(np.ceil(1.5 * batch_size * atoms.mean()), np.quantile(atoms, 0.99)))
    usual = int(min(max_atoms or usual, batch_size * atoms.max()))
    typical = int(np.ceil(batch_size * atoms.mean()))
    rungs = [typical] if typical < 0.7 * usual else []
    rungs += [usual] if atoms.max() <= usual else [usual, int(atoms.max())]
    width, narrow = int(widths.max()), int(np.quantile(widths, 0.5))
    if narrow < 0.7 * width:
        columns, slots = (narrow, width), usual * np.quantile(widths, 0.9)
    else:
        columns, slots = (width,), usual * width
    slots = int(max(slots, np.median(atoms * widths)))
    return Ladder(batch_size, tuple(rungs), columns, usual, slots)
