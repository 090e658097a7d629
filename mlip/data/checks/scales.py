"""Are energies and forces in eV and Å? Bond stiffness, all-electron energies, work against ΔE."""

import numpy as np

from mlip.data.checks.consistency import ENOUGH_PAIRS, UNEXPLAINED
from mlip.data.checks.findings import counted
from mlip.data.quantities import ENERGY_UNITS, FORCES_UNITS
from mlip.units import HARTREE

LIGHT = (1, 5, 6, 7, 8, 9)
# eV/Å² of bonds between H, B, C, N, O and F, measured as the slope of the force along the bond over
# its length: 13 to 54 in 3BPA, acetylacetone, ethanol and water; harmonic constants reach from
# 25 (C-C) to 143 (N2), and compressed bonds are stiffer. A Hartree/Bohr is 51 eV/Å, a kcal/mol
# 0.043 eV, by which the softest bond of these reads as 299.
STIFFNESS = (6.0, 250.0)
ENOUGH_BONDS, BOND_CORRELATION = 100, 0.4
# Total energies over the semiclassical ones of `all_electron`: 1.00 to 1.09 for molecules of light
# atoms. Pseudopotentials give other ratios, nearly all of them far off.
ALL_ELECTRON = (0.93, 1.10)
# Smallest distance over the sum of covalent radii: 0.8 to 1.15 in molecules, metals and salts.
# A Bohr is 0.53 Å.
STRETCHED = (1.5, 2.2)
NOBLE = (2, 10, 18, 36, 54, 86)
# Factor between ΔE and the work of the forces: 0.88 to 1.12 in the same sets. Where both are in
# atomic units, or forces in eV/Bohr, it is 1.89.
FACTOR = 1.4


def all_electron(numbers):
    """Energy of neutral atoms with all their electrons, Hartree, negative; right to some percent.

    Source: Schwinger, Phys. Rev. A 24, 2353 (1981): Thomas-Fermi with Scott's and the exchange
    correction.
    """
    z = np.asarray(numbers, float)
    return -0.768745 * z ** (7 / 3) + z**2 / 2 - 0.269900 * z ** (5 / 3)


def units(sample, pairs, fit):
    """Units that energies and forces speak for, where those they were read in do not fit.

    Args:
      pairs, fit: of `close_pairs` and `fit_work`.
    """
    keys = sample.keys
    as_read = (keys.energy_unit, keys.forces_unit)
    in_energy, in_forces = ENERGY_UNITS[keys.energy_unit], FORCES_UNITS[keys.forces_unit]
    stretched = _stretched(sample)
    # All three as they stand in the file, so that every unit can be tried.
    factor = None if fit.forces is None else fit.forces * in_forces / in_energy
    stiffness, total = _stiffness(sample, in_forces), _total(sample, in_energy)
    fitting = [
        (energy, force)
        for energy, ev in ENERGY_UNITS.items()
        for force, ev_per_angstrom in FORCES_UNITS.items()
        if (factor is None or 1 / FACTOR < factor * ev / ev_per_angstrom < FACTOR)
        and (stiffness is None or STIFFNESS[0] < stiffness * ev_per_angstrom < STIFFNESS[1])
        and (factor is not None or _may_be_total(total, energy))
    ]
    if STRETCHED[0] < stretched < STRETCHED[1]:
        text = (
            f"neighbours are {stretched:.2f} times as far apart as bonded atoms: positions look "
            "like Bohr"
        )
        remedy = "multiply positions and cell by 0.529177 if so, then check energies and forces"
        grade = "warning" if factor is None or as_read in fitting else "error"
        return [sample.finding(grade, "length-unit", text, remedy)]
    if as_read in fitting or (factor is None and stiffness is None and total is None):
        return []
    fitting = [pair for pair in fitting if _may_be_total(total, pair[0])] or fitting
    fitting.sort(key=_unusual)
    sure = factor is not None or stiffness is not None
    text = (
        f"energies and forces do not look like {' and '.join(as_read)}: "
        f"{'; '.join(_evidence(as_read, fit, stiffness, total))}"
    )
    choices = [f"--energy-unit {e} --forces-unit={f}" for e, f in fitting[:3]]
    remedy = "name their units with --energy-unit and --forces-unit"
    if choices:
        remedy = f"look up their units; these fit: {', or '.join(choices)}"
    where = sorted(set(pairs.first.tolist())) if factor is not None else ()
    return [sample.finding("error" if sure else "warning", "units", text, remedy, where)]


def _stretched(sample):
    """Median over the frames of the smallest distance over covalent radii; noble gases aside."""
    closest = [
        survey.closest[0]
        for index, survey in sample.surveys.items()
        if survey.neighbors and not np.isin(sample.structures[index].numbers, NOBLE).all()
    ]
    return np.median(closest) if closest else 1.0


def _may_be_total(total, unit):
    """False where energies in this unit are no total ones, while in another they are."""
    if total is None:
        return True
    inside = {
        name: ALL_ELECTRON[0] < total * ev / HARTREE < ALL_ELECTRON[1]
        for name, ev in ENERGY_UNITS.items()
    }
    return inside[unit] or not any(inside.values())


def _stiffness(sample, in_forces):
    """Mean slope of the force along light bonds over their length, in file units, or None."""
    measured = [
        (*bonds.stiffness(), bonds.n)
        for (first, second), bonds in sample.bonds.items()
        if first in LIGHT and second in LIGHT and bonds.n >= ENOUGH_BONDS
    ]
    sure = [(k, n) for k, correlation, n in measured if abs(correlation) > BOND_CORRELATION]
    if not sure:
        return None
    values, weights = zip(*sure)
    return float(np.average(values, weights=weights)) / in_forces


def _total(sample, in_energy):
    """Median energy, in file units, over that of all electrons in Hartree, or None."""
    where = sample.having("energy")
    if not where:
        return None
    electrons = sample.counts[where] @ all_electron(sample.elements)
    return float(np.median(sample.energy[where] / electrons)) / in_energy


def _evidence(as_read, fit, stiffness, total):
    found = []
    if fit.forces is not None and not 1 / FACTOR < fit.forces < FACTOR:
        found.append(
            f"between {counted(fit.n_pairs, 'pair')} of close frames ΔE is {fit.forces:.3g} times "
            "−F·Δx"
        )
    ev_per_angstrom = FORCES_UNITS[as_read[1]]
    if stiffness is not None and not (STIFFNESS[0] < stiffness * ev_per_angstrom < STIFFNESS[1]):
        found.append(
            f"bonds of light atoms are {stiffness * ev_per_angstrom:.3g} eV/Å² stiff, where 10 to "
            "150 are usual"
        )
    if not _may_be_total(total, as_read[0]):
        found.append(f"energies are {total:.3g} times those of all electrons in Hartree")
    return found


def _unusual(pair):
    """Sorts units that programs print together before others, and forces before gradients."""
    energy, force = pair
    usual = {"eV": "eV/A", "Hartree": "Hartree/Bohr", "Ry": "Ry/Bohr"}.get(energy, f"{energy}/A")
    foreign = force.endswith("A") and not force.endswith(("eV/A", "mol/A"))
    return force.removeprefix("-") != usual, foreign, force.startswith("-"), energy != "eV"


def jumps(sample, pairs, far):
    """Frames whose energies lie far from what the forces of their neighbours say.

    Args:
      far: mask of pairs, of `consistency.jumps`.
    """
    if not far.any():
        return []
    near = {*pairs.first[~far].tolist(), *pairs.second[~far].tolist()}
    every = {*pairs.first[far].tolist(), *pairs.second[far].tolist()}
    left = np.abs(pairs.energy - pairs.by_forces - pairs.by_stress)[far].max()
    where = sorted(every - near or every)
    text = (
        f"the energy of {counted(len(where), 'frame')} jumps, by up to {left:.3g} eV more than "
        "forces and stress make of the way to the next frames"
    )
    remedy = "look whether the calculation converged, and to the same electronic state"
    return [sample.finding("warning", "energy-jump", text, remedy, where)]


def unrelated(sample, pairs, fit):
    """Energies that do not follow the forces at all."""
    if fit.n_pairs < 4 * ENOUGH_PAIRS or fit.explained > UNEXPLAINED:
        return []
    where = sorted({*pairs.first.tolist(), *pairs.second.tolist()})
    text = (
        f"in {counted(fit.n_pairs, 'pair')} of frames {np.median(pairs.distance):.2f} Å apart the "
        f"energies do not follow the forces: −F·Δx explains {max(fit.explained, 0):.0%} of ΔE"
    )
    remedy = (
        "look whether energies and forces belong to the same frames, atoms stand in the same order "
        "and orientation, and all frames are of one electronic state"
    )
    return [sample.finding("warning", "energies-against-forces", text, remedy, where)]
