"""One rank's part of a system that an engine has spread over many.

A rank sums the energies of its own atoms. They depend on atoms up to layers × cutoff away: on the
features of those up to (layers − 1) × cutoff, and beyond on positions alone. The derivative by
atoms of other ranks goes back to their owners.

An atom is one row here, however many periodic copies of it the engine keeps. Neighbours are found
among the rows through the cell, as in a whole system, so that a single rank has no copies at all.
"""

import math
from dataclasses import dataclass

import numpy as np

from mlip.data.graph import Table, arrange
from mlip.data.neighbors import heights, neighbor_list, table_holds
from mlip.data.structure import Structure
from mlip.model.potential import round_up


@dataclass(frozen=True)
class Halo:
    """The atoms of other ranks that a rank knows of, and their owners."""

    atoms: np.ndarray  # [n_atoms] places in the engine's arrays: own atoms, then the others
    by_owner: np.ndarray  # [n_others] order of the others in which owners follow one another
    sent: np.ndarray  # [n_ranks] how many of the others each rank owns
    received: np.ndarray  # [n_ranks] how many of the own atoms each rank knows
    places: np.ndarray  # [received.sum()] which those are
    reach: float  # Å: no rank lacks an atom nearer than this to its own

    def return_to_owners(self, comm, values):
        """Add up what all ranks have found for an atom; all ranks call this together.

        Args:
          comm: communicator of mpi4py.
          values: [n_atoms, 3]

        Returns:
          [n_own, 3]
        """
        n_own = len(values) - len(self.by_owner)
        total = values[:n_own].copy()
        sending = np.ascontiguousarray(values[n_own:][self.by_owner])
        found = np.empty((len(self.places), 3))
        comm.Alltoallv((sending, 3 * self.sent), (found, 3 * self.received))
        np.add.at(total, self.places, found)
        return total


def find_halo(comm, tags, positions, cell, pbc):
    """`Halo` of a rank; all ranks call this together.

    Args:
      comm: communicator of mpi4py.
      tags: [n_copies] the atoms' identifiers: own atoms, then copies of these and of others.
      positions: [n_own, 3] Å, of the own atoms.
      cell, pbc: of the whole system; the cell has three vectors even where it is not periodic.

    Raises:
      ValueError: two atoms with one identifier. On some ranks only, after all have communicated.
    """
    n_own = len(positions)
    own = tags[:n_own]
    others, first = np.unique(tags[n_own:], return_index=True)
    strange = ~np.isin(others, own)
    others, atoms = others[strange], np.concatenate([np.arange(n_own), n_own + first[strange]])
    owners, twice = _find_owners(comm, own, others)
    by_owner = np.argsort(owners, kind="stable")
    sent = np.bincount(owners, minlength=comm.size)
    known = comm.alltoall(np.split(others[by_owner], np.cumsum(sent)[:-1]))
    order = np.argsort(own)
    known = [order[np.searchsorted(own, tags, sorter=order)] for tags in known]
    reach = _reach(comm, known, positions, cell, pbc)
    if len(twice):
        raise ValueError(
            f"several atoms have the identifier {twice[0]}; give each its own, in LAMMPS with "
            "'atom_modify id yes' or 'reset_atoms id'"
        )
    received = np.array([len(places) for places in known])
    return Halo(atoms, by_owner, sent, received, np.concatenate(known), reach)


def _find_owners(comm, own, others):
    """Ranks that own the others, and tags that occur twice; rank tag % n_ranks knows of a tag."""

    def deal(tags):
        return [tags[tags % comm.size == rank] for rank in range(comm.size)]

    known, asked = comm.alltoall(deal(own)), comm.alltoall(deal(others))
    tags = np.concatenate(known)
    order = np.argsort(tags)
    ranks = np.repeat(np.arange(comm.size), [len(k) for k in known])[order]
    tags = tags[order]
    answers = comm.alltoall([ranks[np.searchsorted(tags, question)] for question in asked])
    owners = np.empty(len(others), int)
    for rank, answer in enumerate(answers):
        owners[others % comm.size == rank] = answer
    return owners, tags[1:][tags[1:] == tags[:-1]]


def _reach(comm, known, positions, cell, pbc):
    """How far from its own atoms a rank knows all others, the smallest of all ranks, Å.

    Distances are along the normals of the cell's faces, the largest of the three, to the box that
    its atoms fill; an engine that sends all atoms within a distance of a rank's share of the
    cell has at least that reach.
    """
    fractions = positions @ np.linalg.inv(cell)
    box = (fractions.min(axis=0), fractions.max(axis=0)) if len(positions) else None
    nearest = np.inf
    for rank, (low_high, places) in enumerate(zip(comm.allgather(box), known)):
        if rank != comm.rank and low_high is not None:
            away = np.delete(fractions, places, axis=0) - np.mean(low_high, axis=0)
            away -= np.round(away) * pbc
            gaps = np.abs(away) - np.ptp(low_high, axis=0) / 2
            nearest = min(nearest, (gaps * heights(cell)).max(axis=1).min(initial=np.inf))
    return comm.allreduce(nearest, op=min)


@dataclass(frozen=True)
class Part:
    """The rows that a rank computes, with room so that small changes compile nothing."""

    structure: Structure  # own atoms and those of the halo, when the table was built
    n_own: int
    cutoff: float  # Å
    skin: float  # Å beyond it, within which neighbours were found
    row: np.ndarray  # [n_atoms] of each atom; −1 where it is too far to matter
    table: Table
    room: tuple[
        int, ...
    ]  # [layers + 1] rows for own atoms, for their neighbours, for the neighbours of these …

    def layer_rows(self):
        """Rows that each layer of the network is taken for, the first layer's first."""
        return tuple(np.cumsum(self.room)[-2::-1].tolist())

    def holds(self, structure, n_own):
        """True while every pair within the cutoff is still in the table."""
        same = n_own == self.n_own
        return same and table_holds(self.structure, structure, self.cutoff, self.skin)

    def spread(self, values):
        """Values of the atoms, [n_atoms, …], in their rows, [n_rows, …]; zero elsewhere."""
        rows = np.zeros((len(self.table.neighbors), *values.shape[1:]), values.dtype)
        rows[self.row[self.row >= 0]] = values[self.row >= 0]
        return rows

    def collect(self, rows):
        """Values of the atoms, [n_atoms, …], from rows, [n_rows, …]; zero for those without one."""
        return np.where((self.row >= 0).reshape(-1, *[1] * (rows.ndim - 1)), rows[self.row], 0.0)


def cut_out(structure, n_own, cutoff, skin, layers, room=(), width=1, spare=True):
    """`Part` of a rank, with rows in the order of steps from own atoms to neighbours.

    Args:
      structure: own atoms and those of the halo, in the cell of the whole system.
      cutoff, skin: Å.
      layers: of the network.
      room, width: rows [layers + 1] and slots of a row at least; see `Part`.
      spare: make room for a few more of both.

    Returns:
      `Part`, with rows and slots as they were asked for where these suffice.

    Raises:
      Unusable: two atoms coincide, or there would be more than 10⁸ pairs.
    """
    receivers, senders, shifts = neighbor_list(structure, cutoff + skin)
    steps = np.full(len(structure), layers + 1)
    steps[:n_own] = 0
    for step in range(layers):
        reached = senders[steps[receivers] == step]
        steps[reached] = np.minimum(steps[reached], step + 1)
    counts = np.bincount(steps, minlength=layers + 1)[: layers + 1].tolist()
    room = room or (0,) * len(counts)
    if any(count > rows for count, rows in zip(counts, room)):
        enough = [8 * -(-(n + 2 * math.isqrt(n)) // 8) if spare else n for n in counts]
        room = tuple(max(pair) for pair in zip(enough, room))
    row, first = np.full(len(structure), -1), 0
    for step, rows in enumerate(room):
        atoms = np.flatnonzero(steps == step)
        row[atoms] = first + np.arange(len(atoms))
        first += rows

    used = np.minimum(steps[receivers], steps[senders]) < layers
    receivers, senders, shifts = row[receivers[used]], row[senders[used]], shifts[used]
    order = np.argsort(receivers, kind="stable")
    edges = receivers[order], senders[order], shifts[order]
    most = int(np.bincount(edges[0], minlength=1).max())
    width = max(width, most if most <= width else round_up(-(-11 * most // 10)))
    return Part(structure, n_own, cutoff, skin, row, arrange(first, *edges, width), room)
