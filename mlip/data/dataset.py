"""Data sets: reading files into structures with labels, splitting, energies of single atoms."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlip.data.labels import LabelKeys, choose_keys, read_file, structure_of
from mlip.data.neighbors import neighbor_list
from mlip.data.structure import Unusable, number_of, symbol

# Files of a folder that are hidden, or meant for people.
NO_DATA = re.compile(r"\..*|.*\.md|(readme|licen[cs]e|copying|citation)(\.\w*)?", re.IGNORECASE)


def read(path, keys=LabelKeys()):
    """All structures of a file, or of every file in a folder, with their labels.

    Args:
      path: anything ASE reads: extended XYZ, .traj, ASE databases, VASP OUTCAR and vasprun.xml, …
      keys: where the labels are; None reads none.

    Returns:
      list of `Structure`. A label that some frames lack is None there.

    Raises:
      FileNotFoundError: no such file or folder.
      Unusable: a file that ASE cannot read, no frame, several candidates for a label, no energies
        or forces at all, or a frame that is wrong in itself.
    """
    frames = read_frames(path)
    if keys is None:
        return [structure_of(frame, {}) for frame in frames]
    chosen = choose_keys(keys, frames, path)
    return [structure_of(frame, chosen, keys) for frame in frames]


def files_of(path):
    """The file, or all files of a folder but hidden ones and those for readers, in order."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path of the data")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise Unusable(
            "unreadable",
            f"{path} is neither a file nor a folder",
            "give the path of a file with structures",
        )
    files = sorted(
        file for file in path.rglob("*") if file.is_file() and not NO_DATA.fullmatch(file.name)
    )
    if not files:
        raise Unusable(
            "no-frames",
            f"the folder {path} is empty of data",
            "give a folder with structure files",
        )
    return files


def read_frames(path):
    """Every `Frame` of a file or folder, unchecked; see `read`."""
    path = Path(path)
    frames = [frame for file in files_of(path) for frame in read_file(file)]
    if not frames:
        raise Unusable(
            "no-frames", f"{path} holds no frames", "give a file with at least one structure"
        )
    return frames


def split(structures, fraction, seed):
    """Two lists drawn at random: the rest, and `fraction` of the structures for validation.

    Raises:
      ValueError: a fraction outside (0, 1), or one that leaves either list empty.
    """
    n_valid = round(fraction * len(structures)) if math.isfinite(fraction) else 0
    if not 0 < n_valid < len(structures):
        raise ValueError(
            f"a validation fraction of {fraction} takes {n_valid} of {len(structures)} frames; "
            "choose one that leaves frames on both sides"
        )
    order = np.random.default_rng(seed).permutation(len(structures))
    valid = set(order[:n_valid].tolist())
    return (
        [s for i, s in enumerate(structures) if i not in valid],
        [s for i, s in enumerate(structures) if i in valid],
    )


def split_isolated(structures, cutoff):
    """Two lists: structures, and single atoms without neighbours within the cutoff (Å).

    Single atoms without an energy teach nothing, and are in neither.
    """
    others, isolated = [], []
    for structure in structures:
        if len(structure) > 1 or len(neighbor_list(structure, cutoff)[0]):
            others.append(structure)
        elif structure.energy is not None:
            isolated.append(structure)
    return others, isolated


@dataclass(frozen=True)
class AtomicEnergies:
    """Energies of the single atoms, and how they came about."""

    values: dict[int, float]  # by atomic number, eV
    source: str
    note: str = ""  # what a reader of the model should know


def atomic_energies(option, train, isolated, keys=LabelKeys()):
    """E0 of every element of the training set.

    Args:
      option: "auto" takes the isolated atoms of the training set, or else fits; "fit" fits by
        least squares; "zero"; a file of isolated atoms; or a table such as "H=-13.6, O=-2043.2".
      train: structures to train on.
      isolated: isolated atoms found in the training set.
      keys: where a file of isolated atoms has its energies.

    Raises:
      Unusable: an element without E0, two energies for one element, or a table that cannot be
        read.
    """
    elements = sorted({int(z) for s in train for z in s.numbers})
    if option == "zero":
        return AtomicEnergies(dict.fromkeys(elements, 0.0), "zero")
    if option == "fit" or (option == "auto" and not isolated):
        return fit_atomic_energies(train, elements)
    if option == "auto":
        values, source = _energies_of_atoms(isolated), "isolated atoms in the training set"
    elif "=" in option:
        values, source = _energies_of_table(option), "given table"
    else:
        frames = read(option, replace(keys, forces_key="none", stress_key="none"))
        values, source = _energies_of_atoms(frames), f"isolated atoms of {Path(option).name}"
    missing = [symbol(z) for z in elements if z not in values]
    if missing:
        raise Unusable(
            "e0",
            f"E0 of {', '.join(missing)} is missing ({source} has "
            f"{', '.join(symbol(z) for z in sorted(values)) or 'none'})",
            "add it, or write --e0 fit",
        )
    return AtomicEnergies({z: values[z] for z in elements}, source)


def _energies_of_atoms(structures):
    values = {}
    for structure in structures:
        if len(structure) != 1 or structure.energy is None:
            raise Unusable(
                "e0",
                f"{structure.name} has {len(structure)} atoms and energy {structure.energy}",
                "a file for E0 holds single atoms with an energy",
            )
        z = int(structure.numbers[0])
        if z in values and abs(values[z] - structure.energy) > 1e-6:
            raise Unusable(
                "e0",
                f"{structure.name}: {symbol(z)} has two energies, {values[z]} and "
                f"{structure.energy} eV",
                "keep one",
            )
        values[z] = structure.energy
    return values


def _energies_of_table(text):
    values = {}
    for entry in text.split(","):
        name, _, number = entry.partition("=")
        try:
            values[number_of(name)] = float(number)
            if not math.isfinite(float(number)):
                raise ValueError
        except ValueError:
            raise Unusable(
                "e0",
                f"E0 table entry {entry.strip()!r} is not element=energy",
                'write for instance "H=-13.6, O=-2043.2"',
            ) from None
    return values


def fit_atomic_energies(train, elements):
    """E0 by least squares on the compositions, with a check of what they determine."""
    labelled = [s for s in train if s.energy is not None]
    if not labelled:
        return AtomicEnergies(dict.fromkeys(elements, 0.0), "zero: no frame has an energy")
    counts = np.array([[(s.numbers == z).sum() for z in elements] for s in labelled], float)
    energies = np.array([s.energy for s in labelled])
    values, _, rank, _ = np.linalg.lstsq(counts, energies, rcond=1e-8)
    note = ""
    if rank < len(elements):
        note = (
            f"the compositions determine only {rank} of {len(elements)} energies of single atoms: "
            "energies of other compositions mean nothing. Give isolated atoms with --e0"
        )
    table = dict(zip(elements, values.tolist()))
    return AtomicEnergies(table, f"least squares over {len(labelled)} energies", note)


def closest_pairs(structures, tables):
    """Shortest distance of every pair of elements that are neighbours: {"H-O": 0.94, …}, Å.

    Args:
      tables: the neighbour `Table` of each structure.
    """
    found = {}
    for structure, table in zip(structures, tables):
        vectors = table.displacement(structure.positions, structure.cell, 0.0)[table.used]
        distance = np.linalg.norm(vectors, axis=1)
        receivers = np.nonzero(table.used)[0]
        kinds = np.stack(
            [structure.numbers[receivers], structure.numbers[table.neighbors[table.used]]]
        )
        low, high = np.sort(kinds, axis=0)
        order = np.lexsort((distance, high, low))
        pairs, first = np.unique(np.stack([low, high])[:, order], axis=1, return_index=True)
        for (a, b), shortest in zip(pairs.T, distance[order][first]):
            pair = f"{symbol(a)}-{symbol(b)}"
            found[pair] = min(found.get(pair, np.inf), float(shortest))
    return found
