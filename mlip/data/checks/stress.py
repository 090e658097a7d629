"""Has the stress the sign, unit, order and orientation that it is taken to have?"""

import itertools
from dataclasses import replace

import numpy as np

from mlip.data.checks.consistency import ENOUGH_PAIRS, EXPLAINED, least_deviations
from mlip.data.checks.findings import counted
from mlip.data.checks.sample import VACUUM
from mlip.data.quantities import STRESS_UNITS
from mlip.units import GPA

# Factor between ΔE and V σ:ε: 0.92 to 1.00 in strained silicon and molybdenum.
FACTOR = 1.5
# GPa, change of the pressure with the logarithm of the density: water has 2, diamond 440.
BULK_MODULUS = (0.1, 1000.0)
DENSITIES = 0.005  # relative: over a narrower range the pressure varies with temperature only
CORRELATION = 0.8
BETTER = 2.0  # times smaller deviation with another order of the shear components
SHEAR = 0.02  # of Σ|ΔE|: less work of shear does not tell the order
SHEARS = ("yz", "xz", "xy")
# eV/Å³ across vacuum: the basis set of plane waves leaves some kbar along the normal, little
# across; 1 kbar is 6e-4.
ACROSS, ALONG = 1e-3, 3e-3
AXES = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  # Voigt's order
STEP = 2e-3  # strain: a third derivative of the energy adds some 1e-5 of the elastic constants
MODELLED = 20  # frames whose cells are strained, twelve times each


def against_energies(sample, pairs, fit):
    """Work of the stress between close frames of different cells against their energies."""
    order, gain = _order(pairs, fit)
    if gain > BETTER:
        return [_other_order(sample, order, "energies of strained frames")]
    if fit.stress is None or 1 / FACTOR < fit.stress < FACTOR:
        return []
    strained = pairs.strain.any(axis=(1, 2))
    where = sorted(set(pairs.first[strained].tolist()))
    text = (
        f"between {counted(strained.sum(), 'pair')} of strained frames ΔE is {fit.stress:.3g} "
        "times V σ:ε"
    )
    remedy = _unit(
        fit.stress * STRESS_UNITS[sample.keys.stress_unit], np.median(sample.volume[where])
    )
    return [sample.finding("error", "stress-unit", text, remedy, where)]


def _other_order(sample, order, reason):
    """Finding: true shear component k was read as `SHEARS[order[k]]`."""
    right = dict(zip((SHEARS[k] for k in order), SHEARS))
    named = " ".join(right.get(c, c) for c in sample.keys.order_of_stress())
    text = f"{reason} say that the shear components of the stress stand in another order"
    remedy = f'read six numbers with --stress-order "{named}", or reorder the tensor'
    return sample.finding("error", "stress-order", text, remedy)


def _unit(factor, volume):
    """Remedy for a stress whose numbers are to be taken this many times, eV/Å³."""
    choices = [
        f"read it with --stress-unit={unit}"
        for unit, value in STRESS_UNITS.items()
        if 1 / FACTOR < factor / value < FACTOR
    ]
    if 1 / FACTOR < abs(factor) * volume < FACTOR:
        sign = ", with its sign turned" if factor > 0 else ""
        choices.append(f"if it is a virial in eV, give it under a key that ends in virial{sign}")
    if not choices:
        return "name its unit and sign with --stress-unit, or those of the energies"
    return "; or ".join(choices)


def _order(pairs, fit):
    """The order of shear components by which energies deviate least, and how many times less."""
    as_read = (0, 1, 2)
    strained = pairs.strain.any(axis=(1, 2))
    if strained.sum() < ENOUGH_PAIRS:
        return as_read, 1.0
    virial = np.array([2 * pairs.virial[strained, i, j] for i, j in AXES[3:]])
    strain = np.array([pairs.strain[strained, i, j] for i, j in AXES[3:]])
    normal = np.einsum("nii,nii->n", pairs.virial[strained], pairs.strain[strained])
    factor = 1.0 if fit.forces is None else fit.forces
    left = (pairs.energy - factor * pairs.by_forces)[strained]
    deviation, work = {}, {}
    for order in itertools.permutations(as_read):
        work[order] = (virial[list(order)] * strain).sum(axis=0)
        total = normal + work[order]
        # The unit is not known yet: any factor will do.
        factor = (total @ left) / (total @ total) if total.any() else 0.0
        deviation[order] = np.abs(left - factor * total).sum()
    best = min(deviation, key=deviation.get)
    shear = np.abs(work[best]).sum() / max(np.abs(normal + work[best]).sum(), 1e-12)
    unclear = deviation[best] > (1 - EXPLAINED) * np.abs(left).sum()
    if best == as_read or shear < SHEAR or unclear:
        return as_read, 1.0
    return best, deviation[as_read] / max(deviation[best], 1e-12)


def against_density(sample):
    """Denser frames must push outwards, by as much as matter does."""
    density, pressure = [], []
    for group in sample.groups():
        structures = [sample.structures[i] for i in group if sample.bulk[i]]
        structures = [s for s in structures if s.stress is not None]
        if len(structures) >= ENOUGH_PAIRS:
            logarithm = -np.log([s.volume for s in structures])
            push = np.array([-np.trace(s.stress) / 3 for s in structures])
            density.append(logarithm - logarithm.mean())
            pressure.append(push - push.mean())
    if not density:
        return []
    density, pressure = np.concatenate(density), np.concatenate(pressure)
    spread = density.std(), pressure.std()
    if spread[0] < DENSITIES or not spread[1]:
        return []
    modulus = (density @ pressure) / (density @ density) / GPA
    correlation = (density * pressure).mean() / (spread[0] * spread[1])
    if abs(correlation) < CORRELATION or BULK_MODULUS[0] < modulus < BULK_MODULUS[1]:
        return []
    if -BULK_MODULUS[1] < modulus < -BULK_MODULUS[0]:
        remedy = "its sign is the pressure's: turn it with a minus, such as --stress-unit=-eV/A^3"
    else:
        remedy = "name its unit and sign, such as --stress-unit GPa, kbar, or --stress-unit=-kbar"
    text = (
        f"by the stress of {counted(len(pressure), 'frame')} the bulk modulus is {modulus:.3g} "
        "GPa, where matter has 0.1 to 500"
    )
    return [sample.finding("error", "stress-sign", text, remedy)]


def of_slabs(sample):
    """Across vacuum nothing pulls: V σ·n = −Σ F (r·n) there, exactly.

    A strain along n moves atoms and nothing else, so that the energy's derivative by it is that by
    the positions.
    """
    wrong, checked, worst = [], 0, 0.0
    for i in sample.having("stress"):
        structure = sample.structures[i]
        if structure.forces is None or not np.isfinite(structure.volume) or len(structure) < 2:
            continue
        for axis in np.flatnonzero(sample.gaps[i] > VACUUM):
            normal, along = _along(structure, axis)
            by_forces = -structure.forces.T @ along / structure.volume
            difference = structure.stress @ normal - by_forces
            outward = abs(difference @ normal)
            across = np.linalg.norm(difference - difference @ normal * normal)
            checked += 1
            allowed = np.linalg.norm(by_forces)
            if across > ACROSS + allowed or outward > ALONG + allowed:
                wrong.append(i)
                worst = max(worst, across, outward)
    if not wrong:
        return []
    wrong = sorted(set(wrong))
    text = (
        f"the stress of {len(wrong)} of {checked} slabs is up to {worst / GPA:.2g} GPa across "
        "their vacuum, where the forces allow none"
    )
    remedy = (
        "stress and cell stand in different orientations, or its unit or volume is another; turn "
        "them together, or leave the stress of these frames away"
    )
    return [sample.finding("warning", "stress-of-slabs", text, remedy, wrong)]


def _along(structure, axis):
    """Unit normal of the vacuum, and the atoms' positions along it, unwrapped across it, Å."""
    inverse = np.linalg.inv(structure.cell)
    normal = inverse[:, axis] / np.linalg.norm(inverse[:, axis])
    scaled = (structure.positions @ inverse)[:, axis] % 1.0
    order = np.sort(scaled)
    steps = np.diff(order, append=order[0] + 1)
    start = order[(steps.argmax() + 1) % len(order)]
    return normal, (scaled - start) % 1.0 / np.linalg.norm(inverse[:, axis])


def against_model(sample, predict):
    """Labels of the stress against a trained potential's energies of strained cells.

    The finite differences share neither sign nor unit nor order with the labels.

    Args:
      predict: function from a list of structures to a list of predictions.
    """
    where = [i for i in sample.having("stress") if sample.bulk[i]]
    where = [where[k] for k in np.unique(np.linspace(0, len(where) - 1, MODELLED).astype(int))]
    if len(where) < ENOUGH_PAIRS:
        return []
    structures = [sample.structures[i] for i in where]
    strained = [
        _strained(s, sign * STEP, axes) for s in structures for axes in AXES for sign in (-1, 1)
    ]
    energies = np.array([p.energy for p in predict(strained)]).reshape(len(where), 6, 2)
    model = np.diff(energies, axis=2)[..., 0] / (2 * STEP * sample.volume[where][:, None])
    labels = np.array([[s.stress[axes] for axes in AXES] for s in structures])
    fits = {}
    for order in itertools.permutations((3, 4, 5)):
        columns = labels[:, [0, 1, 2, *order]].reshape(-1, 1)
        (factor,), explained = least_deviations(columns, model.reshape(-1))
        fits[order] = explained, float(factor)
    explained, factor = fits[3, 4, 5]
    best = max(fits, key=fits.get)
    # The share that is left by the order as read, over that by the best.
    if (1 - explained) > BETTER * (1 - fits[best][0]) and fits[best][0] > EXPLAINED:
        return [_other_order(sample, [k - 3 for k in best], "finite strains of the potential")]
    if explained < EXPLAINED:
        text = (
            f"finite strains of the potential explain {max(explained, 0):.0%} of the stress of "
            f"{counted(len(where), 'frame')}"
        )
        remedy = "train with stress, or look whether the labels belong to their frames"
        return [sample.finding("warning", "stress-of-model", text, remedy, where)]
    if 1 / FACTOR < factor < FACTOR:
        return []
    text = f"finite strains of the potential give {factor:.3g} times the stress of the labels"
    remedy = _unit(factor * STRESS_UNITS[sample.keys.stress_unit], np.median(sample.volume[where]))
    return [sample.finding("error", "stress-of-model", text, remedy, where)]


def _strained(structure, size, axes):
    """The structure under a symmetric strain with this one component, xy and yx together."""
    strain = np.zeros((3, 3))
    strain[axes] += size / 2
    strain[axes[::-1]] += size / 2
    stretch = np.eye(3) + strain
    bare = structure.without_labels()
    return replace(bare, cell=bare.cell @ stretch, positions=bare.positions @ stretch)
