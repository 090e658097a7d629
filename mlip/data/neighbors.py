"""All pairs of atoms within a cutoff: any cell, any mix of periodic axes, atoms anywhere."""

import numpy as np

from mlip.data.structure import Unusable

CLOSEST = 1e-3  # Å: below this two atoms count as one
# Most pairs of a frame: the larger of MOST_EDGES and MOST_NEIGHBORS × n_atoms; 130 bytes each.
MOST_EDGES, MOST_NEIGHBORS = 2 * 10**7, 300


def neighbor_list(structure, cutoff):
    """Every ordered pair of atoms, periodic images included, closer than the cutoff.

    Args:
      structure: a `Structure`.
      cutoff: Å; may exceed the cell.

    Returns:
      receivers, senders: [n_edges], sorted by receiver.
      shifts: [n_edges, 3] integers; positions[sender] + shift @ cell − positions[receiver] is
        shorter than the cutoff. No atom is its own neighbour except through a shift.

    Raises:
      Unusable: two atoms coincide, or there would be more than 2·10⁷ pairs and 300 an atom.
    """
    import vesin  # here, since it imports torch where that is installed, which takes seconds

    positions, pbc = structure.positions, structure.pbc
    cell = complete_cell(structure.cell, pbc)
    _refuse_too_many(structure, cell, cutoff)
    if len(structure) == 1 and not pbc.any():
        return np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3), int)
    calculator = vesin.NeighborList(cutoff=float(cutoff), full_list=True)
    receivers, senders, shifts, distance = calculator.compute(
        points=positions, box=cell, periodic=pbc.tolist(), quantities="ijSd"
    )
    if len(distance) and distance.min() < CLOSEST:
        edge = distance.argmin()
        raise Unusable(
            "coincident-atoms",
            f"{structure.name}: atoms {receivers[edge]} and {senders[edge]} are "
            f"{distance[edge]:.2g} Å apart",
            "remove one of them or correct the cell",
        )
    shifts = shifts.astype(int)
    order = np.lexsort((*shifts.T[::-1], senders, receivers))
    return receivers[order].astype(int), senders[order].astype(int), shifts[order]


def complete_cell(cell, pbc):
    """The cell with unit vectors in place of non-periodic axes, across the periodic ones.

    Shifts along those axes are always zero, so that their vectors only have to make the cell
    invertible.
    """
    if not pbc.any():
        return np.eye(3)
    complete = np.where(pbc[:, None], cell, 0.0)
    for axis in np.flatnonzero(~pbc):
        # The last right singular vector is orthogonal to all the rows there are.
        complete[axis] = np.linalg.svd(complete)[2][-1]
    return complete


def heights(cell):
    """Distances between opposite faces of a cell, [3], Å."""
    return 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)


def table_holds(old, new, cutoff, skin):
    """True while the pairs of one structure within cutoff + skin hold all of another within cutoff.

    What the cell's strain does to all atoms alike counts once, as the stretch of a vector; what
    atoms moved besides counts twice, for the two of a pair.

    Args:
      old, new: `Structure` of the same atoms.
      cutoff, skin: Å.
    """
    same = ("numbers", "pbc")
    if not all(np.array_equal(getattr(old, name), getattr(new, name)) for name in same):
        return False
    before, now = (complete_cell(s.cell, s.pbc) for s in (old, new))
    back = np.linalg.solve(now, before)
    farthest = np.linalg.norm(new.positions @ back - old.positions, axis=1).max()
    return cutoff * np.linalg.norm(back, 2) + 2 * farthest < cutoff + skin


def _refuse_too_many(structure, cell, cutoff):
    n_atoms, sphere = len(structure), 4 / 3 * np.pi * cutoff**3
    most = max(MOST_EDGES, MOST_NEIGHBORS * n_atoms)
    if structure.pbc.any():
        # The free axes of a completed cell are orthogonal unit vectors.
        extent = np.ptp(structure.positions @ cell[~structure.pbc].T, axis=0) + cutoff
        expected = n_atoms * n_atoms / (abs(np.linalg.det(cell)) * extent.prod()) * sphere
    elif n_atoms**2 <= most:
        return
    else:
        # In cubes of the sphere's volume all atoms count as neighbours; empty space counts nothing.
        places = (structure.positions - structure.positions.min(axis=0)) // np.cbrt(sphere)
        expected = (np.unique(places, axis=0, return_counts=True)[1] ** 2.0).sum()
    if expected > most:
        raise Unusable(
            "too-many-neighbours",
            f"{structure.name}: a cutoff of {cutoff} Å would make about {expected:.1e} pairs, more "
            f"than {most:.0e}",
            "check the cell and the cutoff",
        )
