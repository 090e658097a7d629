"""Are the labels what they should be, each by itself? Found, finite, precise, of one reference."""

import re

import numpy as np

from mlip.data.checks.findings import Finding, counted
from mlip.data.quantities import ENERGY_UNITS, QUANTITIES
from mlip.data.structure import symbol
from mlip.units import MEV

LIKE_LABELS = re.compile(
    r"energ|toten|(^|_)e_?(pot|tot)|force|gradient|stress|virial", re.IGNORECASE
)
# eV/Å an atom: the error of forces that a good fit reaches; what a set cannot sum to zero stays
# as an error of any potential whatsoever.
NET_FORCE = 0.01
# Of the sum of |r| |F|: rounded positions leave 1e-3; forces turned against their atoms, 0.1 to 1.
# Not of |r × F|, which is rounding itself where molecules are linear.
NET_TORQUE = 0.05
COARSE = 1e-4  # eV an atom: steps of the energy that a fit would notice
# eV an atom: no substance is bound by more than 9 (tungsten), nor do frames worth training on
# lie 10 above their free atoms.
BINDING = (-15.0, 10.0)
FREE_ENERGY = 1e-3  # eV an atom: entropy of the smearing that varies by more spoils the forces
STILL = 0.05  # eV/Å: below it a relaxed frame may round forces to zero


def keys(frames, chosen, wanted):
    """Values that look like a label by their name, but are not read.

    Args:
      wanted: the `LabelKeys`; what is left out by them is not asked for.
    """
    counts = {}
    for frame in frames:
        for key in frame.keys():
            if LIKE_LABELS.search(key) and key not in chosen.values():
                counts[key] = counts.get(key, 0) + 1
    found = []
    for key, count in sorted(counts.items()):
        kind = _kind_of(key)
        beside = chosen.get(kind) and key in ("free_energy", "energies", "stresses")
        if beside or wanted.key(kind) == "none" or kind not in chosen:
            continue
        text = f"{counted(count, 'frame', 'hold')} {key}, which is not read"
        remedy = f"if this is the {kind}, name it with --{kind}-key {key}"
        if kind == "stress":
            remedy += ", its unit and sign with --stress-unit, its order with --stress-order"
        grade = "note" if chosen.get(kind) else "warning"
        found.append(Finding(grade, "unread-key", text, remedy))
    return found


def _kind_of(key):
    lower = key.lower()
    if "stress" in lower or "virial" in lower:
        return "stress"
    return "forces" if "force" in lower or "gradient" in lower else "energy"


def free_energies(frames, places, chosen, keys):
    """Forces derive from the free energy; the energy beside it is extrapolated to no smearing.

    Args:
      keys: the `LabelKeys`, for the unit.
    """
    if chosen.get("energy") != "energy":
        return []
    where, difference, unit = [], [], ENERGY_UNITS[keys.energy_unit]
    for index, frame in enumerate(frames):
        both = [frame.value("energy", key) for key in ("free_energy", "energy")]
        if all(isinstance(value, (int, float)) and np.isfinite(value) for value in both):
            where.append(index)
            difference.append(unit * (both[0] - both[1]) / max(len(frame.atoms), 1))
    if not where or np.std(difference) < FREE_ENERGY:
        return []
    spread = MEV * np.std(difference)
    text = f"energy and free_energy differ by amounts that vary by {spread:.1f} meV/atom"
    remedy = (
        "forces are derivatives of the free energy (TOTEN in VASP); train on it with "
        "--energy-key free_energy"
    )
    where = tuple(places[i] for i in where)
    return [Finding("warning", "free-energy", text, remedy, where)]


def missing(sample, chosen):
    """Frames without a label that others have."""
    found = []
    for kind in QUANTITIES:
        having = set(sample.having(kind))
        # A single atom needs no forces, and stress counts only where there is a volume.
        lacking = [
            i
            for i, s in enumerate(sample.structures)
            if i not in having
            and (kind != "forces" or len(s) > 1)
            and (kind != "stress" or np.isfinite(s.volume))
            and not (QUANTITIES[kind].molecular and s.pbc.any())
        ]
        if having and lacking:
            text = f"{counted(len(lacking), 'frame', 'have')} no {kind}, {len(having)} have"
            remedy = "they are trained on what they have; nothing to do if that is meant"
            found.append(sample.finding("note", "missing-label", text, remedy, lacking))
    useless = [i for i in sample.having("stress") if not np.isfinite(sample.volume[i])]
    if useless:
        text = f"{counted(len(useless), 'frame', 'have')} a stress but no volume"
        remedy = "their stress is not used; give slabs a third lattice vector, or leave it so"
        found.append(sample.finding("note", "stress-without-volume", text, remedy, useless))
    return found


def energies(sample):
    """Energies that are all the same, or written with few digits."""
    where = np.array(sample.having("energy"), int)
    values = sample.energy[where]
    if len(where) < 3 or (sample.n_atoms[where] == 1).all():
        return []
    if np.ptp(values) == 0:
        kind = "zero" if values[0] == 0 else f"{values[0]} eV"
        text = f"all {len(where)} energies are {kind}"
        remedy = "name the true energies with --energy-key"
        return [sample.finding("error", "equal-energies", text, remedy)]
    unit = ENERGY_UNITS[sample.keys.energy_unit]
    step, why = _step(values / unit)
    step *= unit
    if step < 1e-3:  # eV: no calculation is converged better
        return []
    per_atom = step / np.median(sample.n_atoms[where])
    text = f"energies {why}, in steps of {MEV * step:.2g} meV ({MEV * per_atom:.2g} meV/atom)"
    grade = "warning" if per_atom > COARSE else "note"
    remedy = "write energies with all digits, or expect no smaller error of the energies"
    return [sample.finding(grade, "coarse-energies", text, remedy)]


def _step(values):
    """Distance between neighbouring values that can occur, and why."""
    for decimals in range(4):
        if np.allclose(values, values.round(decimals), rtol=0, atol=1e-9):
            return 10.0**-decimals, f"have {decimals} decimals"
    if (values == values.astype(np.float32)).all():
        return float(np.spacing(np.float32(np.abs(values).max()))), "are rounded to float32"
    return 0.0, ""


def forces(sample):
    """Forces that are zero where they cannot be, or do not sum to zero."""
    where = [i for i in sample.having("forces") if sample.n_atoms[i] > 1]
    values = {i: sample.structures[i].forces for i in where}
    pushed = {i: sample.surveys[i].pushed for i in where if i in sample.surveys}
    if where and not any(f.any() for f in values.values()):
        if any(map(len, pushed.values())):
            text = f"all forces of {counted(len(where), 'frame')} are zero"
            remedy = "name the true forces with --forces-key"
            return [sample.finding("error", "zero-forces", text, remedy, where)]
        return []
    found = []
    fixed = [i for i, atoms in pushed.items() if len(atoms) and values[i].std() > STILL]
    if fixed:
        n_atoms = sum(len(pushed[i]) for i in fixed)
        text = (
            f"in {counted(len(fixed), 'frame')} {counted(n_atoms, 'atom', 'have')} forces of "
            "exactly zero, though their surroundings are uneven"
        )
        remedy = (
            "if they were held fixed, the program zeroed their forces: write the true ones, or "
            "free the atoms before writing"
        )
        found.append(sample.finding("warning", "zeroed-forces", text, remedy, fixed))
    net = {i: np.linalg.norm(f.sum(axis=0)) / len(f) for i, f in values.items()}
    worst = [i for i in where if net[i] > NET_FORCE]
    if worst:
        text = (
            f"the forces of {counted(len(worst), 'frame')} do not sum to zero: up to "
            f"{MEV * max(net.values()):.0f} meV/Å an atom are left, which no potential can fit"
        )
        remedy = "converge them better, switch on grid response, or look for rows that are missing"
        found.append(sample.finding("warning", "net-force", text, remedy, worst))
    return found + _torques(sample, values)


def _torques(sample, values):
    """Molecules that their forces would set spinning."""
    spinning = []
    for i, force in values.items():
        structure = sample.structures[i]
        if structure.pbc.any() or not force.std() > STILL or sample.unbounded[i]:
            continue
        arms = structure.positions - structure.positions.mean(axis=0)
        force = force - force.mean(axis=0)
        torque = np.linalg.norm(np.cross(arms, force).sum(axis=0))
        if torque > NET_TORQUE * (_lengths(arms) @ _lengths(force)):
            spinning.append(i)
    if not spinning:
        return []
    text = f"the forces of {counted(len(spinning), 'molecule')} have a net torque"
    remedy = (
        "positions and forces stand in different orientations or orders (Gaussian's standard "
        "orientation?); take both from the same table"
    )
    return [sample.finding("warning", "net-torque", text, remedy, spinning)]


def _lengths(vectors):
    return np.linalg.norm(vectors, axis=1)


def references(sample, e0):
    """Energies of the frames against those of their single atoms."""
    where = [i for i in sample.having("energy") if sample.n_atoms[i] > 1]
    if e0 is None or not where:
        return []
    single = np.array([e0.values.get(int(z), np.nan) for z in sample.elements])
    baseline = sample.counts[where] @ np.nan_to_num(single)
    n_atoms, energy = sample.n_atoms[where], sample.energy[where]
    binding = np.median((energy - baseline) / n_atoms)
    if BINDING[0] < binding < BINDING[1] or e0.source.startswith("least squares"):
        return []
    per_atom, e0_per_atom = np.median(energy / n_atoms), np.median(baseline / n_atoms)
    if BINDING[0] < per_atom < BINDING[1]:
        guess = "the energies are interaction energies while E0 are total ones"
        remedy = "write --e0 fit, or --e0 zero"
    elif abs(e0_per_atom) < -BINDING[0]:
        guess = "the energies are total ones while E0 are not"
        remedy = "take E0 from isolated atoms by the same method, or write --e0 fit"
    else:
        guess = "the two come from different methods, pseudopotentials or units"
        remedy = "compute the isolated atoms by the same method, or write --e0 fit"
    # Where all frames have one composition, a constant is all that E0 can spoil.
    several = len(set(sample.composition[where])) > 1
    grade = "error" if several and e0.source != "zero" else "warning"
    text = (
        f"energies are {per_atom:.4g} eV/atom, E0 ({e0.source}) make {e0_per_atom:.4g}, which "
        f"leaves {binding:+.4g} eV/atom of binding: {guess}"
    )
    return [sample.finding(grade, "reference-energies", text, remedy)]


def rank(sample, e0):
    """Compositions that leave the energies of single atoms open."""
    if e0 is None or not e0.note:
        return []
    names = ", ".join(map(symbol, e0.values))
    one = len(set(sample.composition[sample.bound & np.isfinite(sample.energy)])) == 1
    text = (
        f"the compositions do not determine the energies of single {names}"
        + (" (all frames have one)" if one else "")
        + ": energies of other compositions will mean nothing"
    )
    return [
        sample.finding(
            "note" if one else "warning",
            "open-references",
            text,
            "give isolated atoms with --e0, or frames of other compositions",
        )
    ]
