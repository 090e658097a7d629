"""Are the atoms where they can be, and is every frame there once?"""

import numpy as np

from mlip.data.checks.findings import counted
from mlip.data.checks.sample import VACUUM
from mlip.data.structure import symbol
from mlip.units import MEV

# Of the sum of covalent radii. Bonds are 0.85 to 1.1 long; molten molybdenum reaches down to 0.61,
# molecules at 1200 K to 0.81.
CLOSE = 0.5
ALIKE = 1e-5  # of fingerprints; files round positions to 1e-6 Å or better
ELEMENTS = np.random.default_rng(0).random(128)  # whose sum tells compositions apart
SAME_POSITION = 1e-3  # Å
SAME_ENERGY = 1e-3  # eV an atom
OUTLIER = 20.0  # robust standard deviations: beyond any tail of thermal motion
MINORITY = 0.05  # more than this are no outliers but another kind, as cold frames beside hot ones
FEW = 5  # frames: fewer have no usual spread
ENERGY_OUTLIER = 0.1  # eV an atom, at least: 1000 K of vibration
LARGE_FORCE = 30.0  # eV/Å: frames at 3000 K stay below 15
DENSITY = 2.0  # times the usual one: 30 % of each lattice constant


def close_atoms(sample):
    """Atoms that are closer than atoms are in matter."""
    closest = {i: s.closest for i, s in sample.surveys.items() if s.closest[0] < CLOSE}
    if not closest:
        return []
    worst = min(closest, key=lambda i: closest[i][0])
    _, distance, i, j = closest[worst]
    frame = sample.structures[worst]
    first, second = (f"{symbol(frame.numbers[k])} {k}" for k in (i, j))
    text = (
        f"atoms come closer than half a bond in {counted(len(closest), 'frame')}: {first} and "
        f"{second} of {frame.name} are {distance:.2f} Å apart"
    )
    remedy = "remove the frames, unless they sample the repulsion on purpose; check the cell"
    return [sample.finding("warning", "close-atoms", text, remedy, closest)]


def lonely_atoms(sample):
    """Atoms of larger frames that have no neighbour at all."""
    lonely = {i: s.lonely for i, s in sample.surveys.items() if s.lonely and sample.n_atoms[i] > 1}
    if not lonely:
        return []
    text = (
        f"in {counted(len(lonely), 'frame')} {counted(sum(lonely.values()), 'atom', 'have')} no "
        f"neighbour within {sample.cutoff:g} Å"
    )
    remedy = "check cell, periodic flags and the unit of the positions (Å); or raise the cutoff"
    return [sample.finding("warning", "lonely-atoms", text, remedy, lonely)]


def cells(sample):
    """Cells that do not fit their periodic flags, are left-handed, or hold vacuum."""
    structures, gaps, found = sample.structures, sample.gaps, []
    lost = np.flatnonzero(sample.unbounded)
    if len(lost):
        text = f"{counted(len(lost), 'frame', 'fill')} their cell but are not periodic"
        remedy = 'set pbc="T T T", or remove the cell'
        found.append(sample.finding("warning", "lost-periodicity", text, remedy, lost))
    left = [i for i, s in enumerate(structures) if s.pbc.all() and np.linalg.det(s.cell) < 0]
    if left:
        text = f"{counted(len(left), 'cell', 'are')} left-handed"
        remedy = "nothing to do here; LAMMPS and others want two lattice vectors exchanged"
        found.append(sample.finding("note", "left-handed-cell", text, remedy, left))
    empty = np.array([(s.pbc & (g > VACUUM)) for s, g in zip(structures, gaps)])
    for number, name in ((1, "slabs"), (2, "wires"), (3, "molecules or clusters")):
        where = np.flatnonzero((empty.sum(axis=1) == number) & (sample.n_atoms > 1))
        if len(where):
            text = (
                f"{counted(len(where), 'frame', 'are')} {name} in periodic cells, with up to "
                f"{gaps[where][empty[where]].max():.0f} Å of vacuum"
            )
            remedy = "nothing to do; their stress counts the vacuum's volume"
            found.append(sample.finding("note", "vacuum", text, remedy, where))
    return found


def repeated(sample):
    """Frames that stand twice, with the same labels or contradictory ones, or turned."""
    same, contrary, turned = [], [], []
    structures, energy = sample.structures, sample.energy / sample.n_atoms
    for group in alike(sample):
        kept = []
        for i in group:
            twins = (k for k in kept if same_frame(structures[k], structures[i]))
            twin = next(twins, None)
            if twin is None:
                seen = kept and sample.surveys[i].neighbors
                turned += [i] if seen and abs(energy[i] - energy[kept[0]]) < SAME_ENERGY else []
                kept.append(i)
            elif abs(energy[i] - energy[twin]) > SAME_ENERGY:
                contrary += [twin, i]
            else:
                same.append(i)
    found = []
    if contrary:
        spread = max(abs(np.diff(energy[contrary].reshape(-1, 2))))[0]
        text = (
            f"{counted(len(contrary) // 2, 'frame', 'stand')} twice with different energies, up to "
            f"{MEV * spread:.3g} meV/atom apart"
        )
        remedy = "keep the better converged of each two"
        found.append(sample.finding("warning", "contradictory-frames", text, remedy, contrary))
    if same:
        text = f"{counted(len(same), 'frame', 'repeat')} an earlier one"
        remedy = "mlip check --fix drops them; a random validation set would share frames otherwise"
        found.append(sample.finding("warning", "duplicate-frames", text, remedy, same))
    if turned:
        text = f"{counted(len(turned), 'frame', 'repeat')} another, turned, mirrored or renumbered"
        remedy = "they teach an equivariant network nothing new; nothing to do"
        found.append(sample.finding("note", "turned-frames", text, remedy, turned))
    return found


def leaked(sample, other, path):
    """Frames that stand in another data set too."""
    together = [*sample.surveys.values(), *other.surveys.values()]
    structures = [sample.structures[i] for i in sample.surveys]
    structures += [other.structures[i] for i in other.surveys]
    n_own, own = len(sample.surveys), list(sample.surveys)
    same, turned = [], []
    for group in _groups(np.array([s.fingerprint for s in together]), structures):
        ours, theirs = [g for g in group if g < n_own], [g for g in group if g >= n_own]
        for g in ours if theirs else []:
            exact = any(same_frame(structures[g], structures[t]) for t in theirs)
            if exact or together[g].neighbors:
                (same if exact else turned).append(own[g])
    # Single atoms are wanted in both.
    same = [i for i in same if sample.n_atoms[i] > 1]
    turned = [i for i in turned if sample.n_atoms[i] > 1]
    found, remedy = [], "remove them from one of the two, or errors will look smaller than they are"
    if same:
        text = f"{counted(len(same), 'frame', 'stand')} in {path} too"
        found.append(sample.finding("warning", "leaked-frames", text, remedy, same))
    if turned:
        text = f"{counted(len(turned), 'frame', 'stand')} in {path} turned, mirrored or renumbered"
        found.append(sample.finding("warning", "leaked-turned-frames", text, remedy, turned))
    return found


def alike(sample):
    """Lists of indices with the same neighbours up to rotation and order, two or more each."""
    index = np.array(list(sample.surveys), int)
    if not len(index):
        return []
    prints = np.array([s.fingerprint for s in sample.surveys.values()])
    groups = _groups(prints, [sample.structures[i] for i in index])
    return [index[group].tolist() for group in groups]


def _groups(fingerprints, structures):
    """Lists of two or more indices whose fingerprints and compositions agree."""
    # Elements without neighbours leave nothing in a fingerprint.
    sizes, kinds = zip(*((len(s), ELEMENTS[s.numbers].sum()) for s in structures))
    columns = np.column_stack([sizes, kinds, fingerprints])
    label = np.zeros(len(columns), int)
    for column in columns.T:
        order = np.lexsort((column, label))
        new = (np.diff(label[order]) > 0) | (np.diff(column[order]) > ALIKE)
        label[order] = np.concatenate([[0], np.cumsum(new)])
    order = np.argsort(label, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
    return [group.tolist() for group in groups if len(group) > 1]


def same_frame(one, other):
    """True for the same atoms in the same order and cell, up to a translation."""
    if len(one) != len(other) or (one.numbers != other.numbers).any():
        return False
    if (one.pbc != other.pbc).any():
        return False
    periodic = one.pbc
    if np.abs(one.cell[periodic] - other.cell[periodic]).max(initial=0) > SAME_POSITION:
        return False
    difference = (other.positions - other.positions[0]) - (one.positions - one.positions[0])
    if periodic.any():
        cell = one.cell[periodic]
        steps = np.linalg.lstsq(cell.T, difference.T, rcond=None)[0].round()
        difference = difference - steps.T @ cell
    return bool(np.abs(difference).max() < SAME_POSITION)


def outliers(sample):
    """Frames whose energy, forces or density lie far from those of their like."""
    found, far = [], _energy_outliers(sample)
    if far:
        first, usual = next(iter(far.items()))
        text = (
            f"the energy of {counted(len(far), 'frame')} lies more than {OUTLIER:g} times the "
            "usual spread from that of the composition, such as "
            f"{sample.energy[first] / sample.n_atoms[first]:.3f} eV/atom of "
            f"{sample.structures[first].name} where {sample.formula(first)} has {usual:.3f}"
        )
        remedy = "look whether the calculation converged, and to the same electronic state"
        found.append(sample.finding("warning", "energy-outlier", text, remedy, far))
    largest = {i: np.abs(sample.structures[i].forces).max() for i in sample.having("forces")}
    large = [i for i, force in largest.items() if force > LARGE_FORCE]
    if large:
        text = (
            f"forces exceed {LARGE_FORCE:g} eV/Å in {counted(len(large), 'frame')}, up to "
            f"{max(largest.values()):.3g}"
        )
        remedy = "remove failed calculations; leave the frames if strong repulsion is meant"
        found.append(sample.finding("warning", "large-forces", text, remedy, large))
    return found + _densities(sample)


def _energy_outliers(sample):
    """Indices of outliers, with the usual energy of their composition, eV/atom.

    It is the composition's median, and the sum over atoms that fits all frames best: of some
    compositions there are too few frames to compare.
    """
    energy, far = sample.energy / sample.n_atoms, {}
    where = np.flatnonzero(np.isfinite(energy) & sample.bound)
    counts = sample.counts[where] / sample.n_atoms[where, None]
    usual = np.zeros(len(energy))
    usual[where] = counts @ np.linalg.lstsq(counts, energy[where])[0]
    far |= {i: usual[i] for i in _far(energy - usual, where)}
    for index in np.unique(sample.composition[where]):
        group = where[sample.composition[where] == index]
        far |= dict.fromkeys(_far(energy, group), np.median(energy[group]))
    return far


def _far(values, group):
    """Those of a group whose value is an outlier."""
    if len(group) < FEW:
        return []
    distance = np.abs(values[group] - np.median(values[group]))
    spread = 1.4826 * np.median(distance)  # the standard deviation of a normal distribution
    far = group[distance > max(OUTLIER * spread, ENERGY_OUTLIER)].tolist()
    return far if len(far) <= max(1, MINORITY * len(group)) else []


def _densities(sample):
    wrong = []
    for index in np.unique(sample.composition[sample.bulk]):
        group = np.flatnonzero(sample.bulk & (sample.composition == index))
        ratio = sample.volume[group] / np.median(sample.volume[group])
        wrong += group[(ratio > DENSITY) | (ratio < 1 / DENSITY)].tolist()
    if not wrong:
        return []
    text = (
        f"{counted(len(wrong), 'frame', 'have')} {DENSITY:g} times the usual volume of an atom, or "
        "half of it"
    )
    remedy = "check the unit of their cells (Å)"
    return [sample.finding("warning", "density-outlier", text, remedy, wrong)]
