"""Do energies, forces and stresses belong together? −F·Δx and V σ:ε against ΔE of close frames."""

import itertools
from dataclasses import dataclass, fields

import numpy as np
from scipy.spatial.distance import cdist

from mlip.data.neighbors import complete_cell

# Å, root mean square over the atoms: up to it the mean of two forces gives the work to some
# percent, at 300 K. Below the other, a difference of energies is rounding.
NEAR, DISTINCT = 0.2, 1e-4
STRAIN = 0.08  # largest component of a strain over which the mean stress gives the work
MOST_COMPARED = 400  # frames of one composition that are compared with each other
MOST_PRODUCTS = 2e9  # multiplications for all comparisons of a set, about 2 s
ENOUGH_PAIRS = 5
# Times the median of what the work leaves of ΔE, and eV an atom: 1000 K of vibration. A frame that
# jumps spoils two or three pairs.
JUMP, JUMP_PER_ATOM, MOST_JUMPS = 20.0, 0.1, 0.3
# Share of Σ|ΔE| that the work explains: 0.6 and more in public sets at 300 to 1200 K.
EXPLAINED, UNEXPLAINED = 0.4, 0.2
# Shares of Σ|ΔE| that forces and stress must contribute, or nothing can be said of them.
SHARE_OF_FORCES, SHARE_OF_STRESS = 0.2, 0.05


@dataclass(frozen=True)
class ClosePairs:
    """Pairs of frames that differ by little, and the work from one to the other by their labels."""

    first: np.ndarray  # [n_pairs] indices of structures
    second: np.ndarray  # [n_pairs]
    distance: np.ndarray  # [n_pairs] Å, root mean square displacement
    energy: np.ndarray  # [n_pairs] eV, difference of the energies
    by_forces: np.ndarray  # [n_pairs] eV, −F·Δx
    uncertainty: np.ndarray  # [n_pairs] eV, half of that of one frame less that of the other
    virial: np.ndarray  # [n_pairs, 3, 3] eV, mean V σ; zero without stress
    strain: np.ndarray  # [n_pairs, 3, 3]

    @property
    def by_stress(self):
        """[n_pairs] eV, V σ:ε."""
        return (self.virial * self.strain).sum(axis=(1, 2))

    def __len__(self):
        return len(self.first)

    def __getitem__(self, chosen):
        """The pairs where a mask is True."""
        return ClosePairs(*(getattr(self, f.name)[chosen] for f in fields(self)))


@dataclass(frozen=True)
class Fit:
    """ΔE as a sum of a multiple of the work of the forces and one of the stress."""

    n_pairs: int
    forces: float | None  # factor of −F·Δx; None where it is not determined
    stress: float | None  # factor of V σ:ε
    explained: float  # share of Σ|ΔE|


def least_deviations(columns, values):
    """Factors of the columns whose sum deviates least from the values, which outliers hardly move.

    Args:
      columns: [n, k].
      values: [n], not all zero.

    Returns:
      factors [k], and the share of Σ|values| that they explain, at most 1.
    """
    weight, size = np.ones(len(values)), np.abs(values)
    for _ in range(30):  # least squares, reweighted until they are least absolute deviations
        root = np.sqrt(weight)
        factors = np.linalg.lstsq(columns * root[:, None], values * root, rcond=1e-12)[0]
        left = np.abs(values - columns @ factors)
        weight = 1 / np.maximum(left, 1e-3 * size.mean())
    return factors, float(1 - left.sum() / size.sum())


def jumps(pairs, n_atoms):
    """Mask of the few pairs whose energies differ by far more than their work, in any unit.

    Args:
      n_atoms: [n_pairs] atoms of a frame.
    """
    if len(pairs) < ENOUGH_PAIRS or not pairs.energy.any():
        return np.zeros(len(pairs), bool)
    work = np.stack([pairs.by_forces, pairs.by_stress], axis=1)
    factors, _ = least_deviations(work, pairs.energy)
    left = np.abs(pairs.energy - work @ factors)
    far = left > np.maximum(JUMP * np.median(left), JUMP_PER_ATOM * n_atoms)
    # Where the energy is curved one way, ΔE lies between the works of the two frames' forces.
    far &= left > abs(factors[0]) * pairs.uncertainty
    return far & (far.mean() < MOST_JUMPS)


def fit_work(pairs):
    """`Fit` of all pairs."""
    work = np.stack([pairs.by_forces, pairs.by_stress], axis=1)
    if len(pairs) < ENOUGH_PAIRS or not pairs.energy.any():
        return Fit(len(pairs), None, None, 0.0)
    factors, explained = least_deviations(work, pairs.energy)
    share = np.abs(work * factors).sum(axis=0) / np.abs(pairs.energy).sum()
    sure = explained > EXPLAINED
    return Fit(
        len(pairs),
        float(factors[0]) if sure and share[0] > SHARE_OF_FORCES else None,
        float(factors[1]) if sure and share[1] > SHARE_OF_STRESS else None,
        explained,
    )


def close_pairs(sample):
    """`ClosePairs` of all frames with energy and forces; each frame with its nearest."""
    found, left = [], MOST_PRODUCTS
    for group in sample.groups():
        group = [
            i
            for i in group
            if np.isfinite(sample.energy[i]) and sample.structures[i].forces is not None
        ]
        if len(group) < 2 or sample.n_atoms[group[0]] < 2:
            continue
        frames = _Aligned([sample.structures[i] for i in group])
        compared = min(MOST_COMPARED, int(np.sqrt(left / frames.points[0].size)))
        if compared < 2:
            break
        left -= compared**2 * frames.points[0].size
        found += [_pair(group, frames, i, j) for i, j in _nearest(frames, compared)]
    found = [pair for pair in found if pair is not None]
    if not found:
        empty = np.zeros(0)
        return ClosePairs(*np.zeros((2, 0), int), *[empty] * 4, *np.zeros((2, 0, 3, 3)))
    return ClosePairs(*map(np.array, zip(*found)))


class _Aligned:
    """Frames of the same atoms laid over the first as well as translation and rotation can."""

    def __init__(self, structures):
        self.structures = structures
        self.cells = np.array([s.cell for s in structures])
        self.pbc = structures[0].pbc
        positions = np.array([s.positions for s in structures])
        self.forces = np.array([s.forces for s in structures])
        if self.pbc.any():
            inverse = np.linalg.inv([complete_cell(s.cell, s.pbc) for s in structures])
            self.scaled = positions @ inverse
            size = np.linalg.norm(complete_cell(structures[0].cell, self.pbc), axis=1)
            turns = 2 * np.pi * (self.scaled - self._drift()[:, None])
            points = [
                np.concatenate([np.cos(turns), np.sin(turns)], axis=2)[..., self.pbc.tolist() * 2]
                * np.tile(size[self.pbc], 2)
                / (2 * np.pi),
                (self.scaled - self.scaled.mean(axis=1, keepdims=True))[..., ~self.pbc],
            ]
            points = np.concatenate(points, axis=2).reshape(len(structures), -1)
            # A strain moves atoms by about a tenth of the cell times the strain.
            weight = 0.1 * np.sqrt(len(structures[0]))
            self.points = np.column_stack([points, weight * self.cells.reshape(-1, 9)])
        else:
            centred = positions - positions.mean(axis=1, keepdims=True)
            rotation = _rotation(centred[:1], centred)
            self.positions, self.forces = centred @ rotation, self.forces @ rotation
            self.points = self.positions.reshape(len(structures), -1)

    def _drift(self):
        """Translation of each frame against the first, [n, 3], fractions of a period."""
        turns = np.exp(2j * np.pi * (self.scaled - self.scaled[0]))
        return np.angle(turns.mean(axis=1)) / (2 * np.pi) * self.pbc

    def between(self, i, j):
        """Displacements [n_atoms, 3] from frame i to frame j, and the forces on them in j."""
        if not self.pbc.any():
            rotation = _rotation(self.positions[i], self.positions[j])
            return self.positions[j] @ rotation - self.positions[i], self.forces[j] @ rotation
        step = self.scaled[j] - self.scaled[i]
        step = step - self._mean_step(step)
        step -= step.round() * self.pbc
        step -= step.mean(axis=0)
        cells = [complete_cell(self.cells[k], self.pbc) for k in (i, j)]
        return step @ (cells[0] + cells[1]) / 2, self.forces[j]

    def _mean_step(self, step):
        turns = np.exp(2j * np.pi * step).mean(axis=0)
        return np.where(self.pbc, np.angle(turns) / (2 * np.pi), step.mean(axis=0))


def _rotation(reference, positions):
    """Rotation that lays positions over a reference, both centred, [..., 3, 3] from the right.

    Source: Kabsch, Acta Cryst. A 32, 922 (1976).
    """
    left, _, right = np.linalg.svd(positions.swapaxes(-1, -2) @ reference)
    left[..., -1] *= np.sign(np.linalg.det(left @ right))[..., None]
    return left @ right


def _nearest(frames, compared):
    """Pairs (i, j), i < j: each frame with the next, and with its nearest of those compared."""
    n = len(frames.structures)
    pairs = set(itertools.pairwise(range(n)))
    some = np.unique(np.linspace(0, n - 1, min(n, compared)).astype(int))
    distance = cdist(frames.points[some], frames.points[some])
    # Frames that stand twice tell nothing of each other.
    distance[distance < DISTINCT] = np.inf
    nearest = distance.argmin(axis=1)
    pairs |= {(min(i, j), max(i, j)) for i, j in zip(some.tolist(), some[nearest].tolist())}
    return sorted((i, j) for i, j in pairs if i != j)


def _pair(group, frames, i, j):
    """The entries of `ClosePairs` for two frames, or None where they are not close."""
    one, other = frames.structures[i], frames.structures[j]
    strain = np.zeros((3, 3))
    if one.pbc.any():
        cells = [complete_cell(s.cell, s.pbc) for s in (one, other)]
        stretch = np.linalg.solve(*cells)
        # The strain about the middle of the way: symmetric in both frames, right to second order.
        strain = 2 * np.linalg.solve(stretch + np.eye(3), stretch - np.eye(3))
        strain = (strain + strain.T) / 2
        if np.abs(strain).max() > STRAIN:
            return None
    displacement, forces = frames.between(i, j)
    distance = np.sqrt((displacement**2).sum(axis=1).mean())
    strained = np.abs(strain).max() > 1e-6
    if distance > NEAR or (distance < DISTINCT and not strained):
        return None
    virial = np.zeros((3, 3))
    if one.stress is not None and other.stress is not None and np.isfinite(one.volume):
        virial = (one.volume * one.stress + other.volume * other.stress) / 2
    elif strained:
        return None
    works = [-(displacement * f).sum() for f in (frames.forces[i], forces)]
    work, uncertainty = sum(works) / 2, abs(works[0] - works[1]) / 2
    energy = other.energy - one.energy
    return group[i], group[j], distance, energy, work, uncertainty, virial, strain
