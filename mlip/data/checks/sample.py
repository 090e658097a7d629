"""A data set as arrays: one pass over its frames and their neighbours, for all checks together."""

import functools
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from mlip.data.checks.findings import Finding, refusal
from mlip.data.labels import LabelKeys
from mlip.data.neighbors import complete_cell, neighbor_list
from mlip.data.structure import COVALENT_RADII, Unusable, symbol

# A core takes some 6 s for them; of larger sets frames are drawn evenly, and the summary says so.
MOST_EDGES = 40_000_000
BOND = 1.25  # of the sum of covalent radii: longer than any single bond, shorter than two of them
MOST_BONDED = 1000  # frames whose bonds are measured; their stiffness is a mean
VACUUM = 6.0  # Å: no two atoms bond over it; the longest single bond, of caesium, is 4.9 Å
CONTACT = 3.0  # Å: a layer thinner than this is no vacuum, but the space between bonded atoms
# A pair of functions per wave number from a smooth cutoff; enough to tell structures apart.
WAVES = 6


@dataclass(frozen=True)
class Survey:
    """What the neighbours of one frame say."""

    closest: tuple  # (distance over sum of covalent radii, distance in Å, atom, atom)
    shortest: float  # distance of two atoms, Å; not always of the pair that is closest
    lonely: int  # atoms without any neighbour
    neighbors: float  # mean number an atom
    fingerprint: np.ndarray  # [WAVES + 1] the same after rotation, translation and permutation
    pushed: np.ndarray  # atoms whose force is exactly zero though their surroundings are uneven


@dataclass
class Bonds:
    """Sums over the bonds of a kind: length d (Å), and the force f along it that shortens it."""

    n: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(5))  # d, f, d², f², df

    def add(self, d, f):
        self.n += len(d)
        self.sums = self.sums + (d.sum(), f.sum(), d @ d, f @ f, d @ f)

    def stiffness(self):
        """Slope of f over d (eV/Å²) and their correlation."""
        d, f, dd, ff, df = self.sums / max(self.n, 1)
        spread, of_force, covariance = dd - d * d, ff - f * f, df - d * f
        if spread <= 0 or of_force <= 0:
            return 0.0, 0.0
        return covariance / spread, covariance / np.sqrt(spread * of_force)


@dataclass(frozen=True)
class Sample:
    """The usable frames of a data set, and what was measured of them."""

    structures: list
    places: list  # (file, index) of each structure
    keys: LabelKeys  # by which they were read
    cutoff: float  # Å
    surveys: dict  # {index of a structure: Survey}
    bonds: dict  # {(number, number): Bonds}, first the smaller
    pairs: dict  # {(number, number): frames in which the two are within the cutoff}
    refused: tuple  # findings of frames without a survey

    def finding(self, grade, check, message, remedy, where=()):
        """A `Finding` in these structures, given by index."""
        places = tuple(self.places[i] for i in sorted(set(where)))
        return Finding(grade, check, message, remedy, places)

    @functools.cached_property
    def n_atoms(self):
        return np.array([len(s) for s in self.structures])

    @functools.cached_property
    def energy(self):
        """[n] eV, NaN where a frame has none."""
        return np.array([np.nan if s.energy is None else s.energy for s in self.structures])

    @functools.cached_property
    def elements(self):
        """Atomic numbers in the set, ascending."""
        return np.unique(np.concatenate([s.numbers for s in self.structures]))

    @functools.cached_property
    def counts(self):
        """[n, n_elements] atoms of each element."""
        width = self.elements.max() + 1
        rows = [np.bincount(s.numbers, minlength=width) for s in self.structures]
        return np.array(rows)[:, self.elements]

    @functools.cached_property
    def composition(self):
        """[n] index of each frame's composition."""
        return np.unique(self.counts, axis=0, return_inverse=True)[1].reshape(-1)

    def formula(self, index):
        """Such as C2H6O, of one frame."""
        parts = zip(self.elements, self.counts[index])
        return "".join(f"{symbol(z)}{n if n > 1 else ''}" for z, n in parts if n)

    @functools.cached_property
    def volume(self):
        """[n] Å³, infinite where none is defined."""
        return np.array([s.volume for s in self.structures])

    @functools.cached_property
    def gaps(self):
        """[n, 3] widest empty layer across each lattice vector, Å; infinite without a vector."""
        return np.array([gaps_of(s) for s in self.structures])

    @functools.cached_property
    def bulk(self):
        """[n] True for frames that are periodic along three axes and have no vacuum."""
        periodic = np.array([s.pbc.all() for s in self.structures])
        return periodic & (self.gaps < VACUUM).all(axis=1)

    @functools.cached_property
    def bound(self):
        """[n] True for frames of several atoms, and of one that has neighbours."""
        bound = self.n_atoms > 1
        bound[[i for i, found in self.surveys.items() if found.neighbors]] = True
        return bound

    @functools.cached_property
    def unbounded(self):
        """[n] True for frames that fill their cell but are not periodic."""
        periodic = np.array([s.pbc.any() for s in self.structures])
        return ~periodic & (self.n_atoms > 1) & (self.gaps < CONTACT).all(axis=1)

    def having(self, kind):
        """Indices of the frames with a label."""
        return [i for i, s in enumerate(self.structures) if s.label(kind) is not None]

    def groups(self):
        """Lists of indices with the same atoms in the same order and the same periodic axes."""
        found = defaultdict(list)
        for i, s in enumerate(self.structures):
            found[s.numbers.tobytes(), s.pbc.tobytes()].append(i)
        return list(found.values())


def survey(structures, places, keys, cutoff):
    """A `Sample` of structures."""
    surveys, bonds, pairs, refused, edges = {}, defaultdict(Bonds), defaultdict(int), [], 0
    order = np.arange(len(structures))
    if len(order) > 1000:  # so that a budget that runs out leaves frames from everywhere
        order = np.random.default_rng(0).permutation(order)
    for index in order:
        structure = structures[index]
        try:
            receivers, senders, shifts = neighbor_list(structure, cutoff)
        except Unusable as error:
            refused.append(
                refusal(error, structure.name, places[index]),
            )
            continue
        edges += len(receivers)
        vectors = structure.positions[senders] + shifts @ structure.cell
        vectors -= structure.positions[receivers]
        counted = bonds if len(surveys) < MOST_BONDED else None
        surveys[int(index)] = _survey(
            structure, receivers, senders, vectors, cutoff, counted, pairs
        )
        if edges > MOST_EDGES:
            break
    surveys = dict(sorted(surveys.items()))
    return Sample(structures, places, keys, cutoff, surveys, bonds, pairs, tuple(refused))


def _survey(structure, receivers, senders, vectors, cutoff, bonds, pairs):
    numbers, n_atoms = structure.numbers, len(structure)
    if not len(receivers):
        nothing = np.zeros(WAVES + 1), np.zeros(0, int)
        return Survey((np.inf, np.inf, 0, 0), np.inf, n_atoms, 0.0, *nothing)
    distance = np.sqrt((vectors**2).sum(axis=1))
    ratio = distance / (COVALENT_RADII[numbers[receivers]] + COVALENT_RADII[numbers[senders]])
    at = ratio.argmin()
    kinds = numbers[receivers] * 128 + numbers[senders]
    for kind in np.unique(kinds):
        first, second = divmod(int(kind), 128)
        if first <= second:
            pairs[first, second] += 1
    if structure.forces is not None and bonds is not None:
        near = (ratio < BOND) & (numbers[receivers] <= numbers[senders])
        _add_bonds(structure, kinds, receivers, senders, vectors, distance, near, bonds)
    lonely = n_atoms - len(np.unique(receivers))
    weight = (1 - (distance / cutoff) ** 2) ** 2 * np.sqrt(numbers[senders])
    waves = np.cos(np.arange(WAVES)[:, None] * (np.pi / cutoff) * distance)
    pull = (vectors * (weight / distance)[:, None]).T
    uneven = np.stack([np.bincount(receivers, axis, minlength=n_atoms) for axis in pull], axis=1)
    unevenness = (uneven**2).sum(axis=1)
    fingerprint = np.append(
        waves @ (weight * np.sqrt(numbers[receivers])), (unevenness * numbers).sum()
    )
    pushed = np.zeros(0, int)
    if structure.forces is not None and (still := ~structure.forces.any(axis=1)).any():
        total = np.bincount(receivers, weight, minlength=n_atoms)
        # Symmetry that forbids a force makes this sum vanish too; 1 % is far above rounding.
        pushed = np.flatnonzero(still & (np.sqrt(unevenness) > 0.01 * total))
    return Survey(
        (ratio[at], distance[at], int(receivers[at]), int(senders[at])),
        distance.min(),
        lonely,
        len(receivers) / n_atoms,
        fingerprint / n_atoms,
        pushed,
    )


def _add_bonds(structure, kinds, receivers, senders, vectors, distance, near, bonds):
    """Add the bonds of a frame to the sums of their kind."""
    near = np.flatnonzero(near)
    difference = structure.forces[receivers[near]] - structure.forces[senders[near]]
    length = distance[near]
    force = (difference * vectors[near]).sum(axis=1) / length / 2
    kinds = kinds[near]
    for kind in np.unique(kinds):
        chosen = kinds == kind
        bonds[divmod(int(kind), 128)].add(length[chosen], force[chosen])


def heights(cell, axes):
    """Distance between opposite faces along these axes, [3] Å; 1 along the others."""
    return 1 / np.linalg.norm(np.linalg.inv(complete_cell(cell, axes)), axis=0)


def gaps_of(structure):
    """Widest layer without atoms along each lattice vector, [3], Å; infinite where none is."""
    axes = structure.cell.any(axis=1)
    cell = complete_cell(structure.cell, axes)
    if not axes.any() or abs(np.linalg.det(cell)) < 1e-6:
        return np.full(3, np.inf)
    scaled = np.sort(structure.positions @ np.linalg.inv(cell) % 1.0, axis=0)
    steps = np.diff(scaled, axis=0, append=scaled[:1] + 1)
    return np.where(axes, steps.max(axis=0) * heights(cell, axes), np.inf)
