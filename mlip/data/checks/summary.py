"""What is in a data set: numbers for the terminal and for JSON."""

from collections import Counter

import numpy as np

from mlip.data.checks.sample import VACUUM
from mlip.data.quantities import QUANTITIES
from mlip.data.structure import symbol
from mlip.units import GPA

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def summarize(sample, chosen, energies):
    """A dictionary of numbers, texts and dictionaries of them.

    Args:
      chosen: {kind: key} of the labels.
      energies: `AtomicEnergies`, or None.

    Returns:
      `frames`, `atoms`, `atoms_per_frame`, `elements` (atoms of each), `compositions` (frames of
      each), `periodicity`, `groups`, `labels` (key and number of frames), `e0_eV`, `closest_A`,
      `neighbors`, and distributions as {mean, std, quantiles: {0, 0.05, …, 1}}:
      `energy_eV_per_atom`, `forces_eV_per_A` (magnitudes), `pressure_GPa`,
      `volume_A3_per_atom`.
    """
    structures = sample.structures
    formulas = Counter(sample.formula(i) for i in range(len(structures)))
    finite = np.isfinite(sample.energy)
    volume = sample.volume[sample.bulk] / sample.n_atoms[sample.bulk]
    forces = [structures[i].forces for i in sample.having("forces")]
    stress = [structures[i].stress for i in sample.having("stress")]
    neighbors = np.array([survey.neighbors for survey in sample.surveys.values()])
    shortest = min((survey.shortest for survey in sample.surveys.values()), default=np.inf)
    return {
        "frames": len(structures),
        "surveyed_frames": len(sample.surveys),
        "atoms": int(sample.n_atoms.sum()),
        "atoms_per_frame": distribution(sample.n_atoms),
        "elements": {symbol(z): int(n) for z, n in zip(sample.elements, sample.counts.sum(axis=0))},
        "compositions": dict(formulas.most_common()),
        "periodicity": dict(Counter(_kind(s, g) for s, g in zip(structures, sample.gaps))),
        "groups": dict(Counter(s.group for s in structures if s.group)),
        "labels": {
            kind: {"key": chosen[kind], "frames": len(sample.having(kind))}
            for kind in QUANTITIES
            if chosen.get(kind)
        },
        "e0_eV": None if energies is None else {symbol(z): e for z, e in energies.values.items()},
        "e0_source": None if energies is None else energies.source,
        "cutoff_A": sample.cutoff,
        "neighbors": distribution(neighbors),
        "closest_A": float(shortest) if np.isfinite(shortest) else None,
        "energy_eV_per_atom": distribution((sample.energy / sample.n_atoms)[finite]),
        "forces_eV_per_A": distribution(
            np.linalg.norm(np.concatenate(forces), axis=1) if forces else []
        ),
        "pressure_GPa": distribution([-np.trace(s) / 3 / GPA for s in stress]),
        "volume_A3_per_atom": distribution(volume),
    }


def _kind(structure, gaps):
    """Crystal, slab, wire or molecule; molecules may stand in a periodic cell."""
    free = int(3 - (structure.pbc & (gaps < VACUUM)).sum())
    kind = ("crystals or liquids", "slabs", "wires", "molecules")[free]
    return f"{kind} in periodic cells" if free and structure.pbc.all() else kind


def distribution(values):
    """Mean, standard deviation and quantiles, or None of nothing."""
    values = np.asarray(values, float)
    if not values.size:
        return None
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "quantiles": {str(q): float(v) for q, v in zip(QUANTILES, np.quantile(values, QUANTILES))},
    }
