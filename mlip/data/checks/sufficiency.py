"""Is there enough in the set to learn what is asked of it?"""

from itertools import combinations_with_replacement

import numpy as np

from mlip.data.checks.findings import counted
from mlip.data.checks.sample import heights
from mlip.data.structure import symbol

RARE = 10  # frames: fewer cannot both train and validate
MANY = 200  # frames: in a smaller set ten of a kind are no minority
LARGE = 4.0  # times the size of 95 % of the frames
LARGE_ATOMS = 100  # below, memory is of no concern
FEW_NEIGHBORS = 6  # an atom: fewer than the corners of an octahedron say little of angles
MANY_NEIGHBORS = 150  # an atom: a cutoff of 8 Å in water; cost grows with them
SAME_CELL = 1e-4  # relative


def rare(sample):
    """Elements, and pairs of them, that few frames have."""
    n, found = len(sample.structures), []
    frames = (sample.counts[sample.n_atoms > 1] > 0).sum(axis=0)
    few = {symbol(z): c for z, c in zip(sample.elements, frames) if c < RARE and n >= MANY}
    if few:
        listed = ", ".join(f"{name} in {count}" for name, count in few.items())
        text = f"of {n} frames some elements are in few: {listed}"
        remedy = "add frames of them, or remove the element: it will not be learnt"
        rows = (sample.counts > 0)[:, frames < RARE].any(axis=1)
        where = np.flatnonzero(rows & (sample.n_atoms > 1))
        found.append(sample.finding("warning", "rare-element", text, remedy, where))
    common = {int(z) for z, count in zip(sample.elements, frames) if count >= RARE}
    few = {pair: n for pair, n in sample.pairs.items() if n < RARE and common.issuperset(pair)}
    if few and len(sample.surveys) >= MANY:
        listed = ", ".join(f"{symbol(a)}-{symbol(b)} in {n}" for (a, b), n in sorted(few.items()))
        text = (
            f"of {len(sample.surveys)} frames some pairs come within {sample.cutoff:g} Å in few: "
            f"{listed}"
        )
        remedy = "add frames with them if the potential will meet them"
        found.append(sample.finding("note", "rare-pairs", text, remedy))
    numbers = [int(z) for z, count in zip(sample.elements, frames) if count]
    never = [
        f"{symbol(a)}-{symbol(b)}"
        for a, b in combinations_with_replacement(numbers, 2)
        if not sample.pairs.get((a, b))
    ]
    if never and sample.surveys:
        text = f"some pairs never come within {sample.cutoff:g} Å: {', '.join(never)}"
        remedy = "add frames with them if the potential will meet them, or use zbl = true"
        found.append(sample.finding("note", "missing-pairs", text, remedy))
    return found


def strains(sample):
    """Periodic frames that all have one cell."""
    groups = [
        np.flatnonzero(sample.bulk & (sample.composition == c))
        for c in np.unique(sample.composition[sample.bulk])
    ]
    if not groups or any(_strained(sample, group) for group in groups):
        return []
    asked = any(sample.structures[i].stress is not None for g in groups for i in g)
    text = "no two periodic frames of one composition differ in their cell"
    remedy = (
        "add strained cells (some percent, all six directions) before trusting the stress, "
        "constant-pressure dynamics or relaxed cells"
    )
    return [sample.finding("warning" if asked else "note", "no-strains", text, remedy)]


def _strained(sample, group):
    cells = np.array([sample.structures[i].cell for i in group])
    return np.ptp(cells, axis=0).max() > SAME_CELL * np.abs(cells).max()


def sizes(sample):
    """A few frames that are far larger than the rest."""
    usual = np.quantile(sample.n_atoms, 0.95)
    where = np.flatnonzero((sample.n_atoms > LARGE * usual) & (sample.n_atoms > LARGE_ATOMS))
    if not len(where):
        return []
    text = (
        f"{counted(len(where), 'frame', 'have')} up to {sample.n_atoms.max()} atoms where nearly "
        f"all others have {usual:.0f} or fewer: the largest sets the memory that training needs"
    )
    remedy = "leave them out if memory or time runs short"
    return [sample.finding("warning", "large-frame", text, remedy, where)]


def neighbors(sample):
    """Cutoffs that are too short or too long for the frames."""
    where = [i for i in sample.surveys if sample.n_atoms[i] > 1]
    if not where:
        return []
    found, mean = [], np.array([sample.surveys[i].neighbors for i in where])
    periodic = np.array([sample.structures[i].pbc.any() for i in where])
    others = np.where(periodic, np.inf, sample.n_atoms[where] - 1)
    few = np.flatnonzero((mean < FEW_NEIGHBORS) & (mean < others))
    if 2 * len(few) > len(where):
        text = f"atoms have {mean[few].mean():.1f} neighbours within {sample.cutoff:g} Å"
        remedy = "raise --cutoff: with so few the network hardly sees angles"
        found.append(sample.finding("warning", "few-neighbors", text, remedy))
    if mean.mean() > MANY_NEIGHBORS:
        text = f"atoms have {mean.mean():.0f} neighbours within {sample.cutoff:g} Å"
        remedy = "lower --cutoff if speed matters: time and memory grow with the neighbours"
        found.append(sample.finding("warning", "many-neighbors", text, remedy))
    return found + _small_cells(sample)


def _small_cells(sample):
    lowest = {
        i: heights(s.cell, s.pbc)[s.pbc].min()
        for i, s in enumerate(sample.structures)
        if s.pbc.any()
    }
    small = [i for i, height in lowest.items() if height < sample.cutoff]
    if not small:
        return []
    every = len(small) == len(lowest)
    text = (
        f"the cutoff of {sample.cutoff:g} Å is longer than the cells of {len(small)} of "
        f"{len(lowest)} periodic frames are high (from {min(lowest.values()):.1f} Å): atoms "
        "there see their own images, which move with them"
    )
    remedy = "add larger cells, or lower --cutoff" if every else "nothing to do"
    grade = "warning" if every else "note"
    return [sample.finding(grade, "small-cells", text, remedy, small)]
