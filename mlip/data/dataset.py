"""Data sets: reading files into structures with labels, splitting, energies of single atoms."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import ase.io
import numpy as np
from ase.io.formats import UnknownFileTypeError

from mlip.data.graph import build_table
from mlip.data.structure import from_ase, number_of, symbol
from mlip.units import GPA, KBAR

# Stresses are taken with ASE's sign; codes that print the pressure tensor need a minus.
STRESS_UNITS = {
    "eV/A^3": 1.0,
    "GPa": GPA,
    "kbar": KBAR,
    "-eV/A^3": -1.0,
    "-GPa": -GPA,
    "-kbar": -KBAR,
}
PATTERNS = {
    "energy": re.compile(r"(.*_)?energy", re.IGNORECASE),
    "forces": re.compile(r"(.*_)?forces?", re.IGNORECASE),
    "stress": re.compile(r"(.*_)?(stress|virials?)", re.IGNORECASE),
}
# Calculators write this beside `energy`; it counts only where it stands alone.
SECOND_CHOICE = {"free_energy": "energy"}


@dataclass(frozen=True)
class LabelKeys:
    """Where a data set keeps its labels. "auto" finds them; "none" goes without."""

    energy_key: str = "auto"  # eV
    forces_key: str = "auto"  # eV/Å
    stress_key: str = "auto"  # a key whose name ends in "virial" or "virials" holds −V·stress, eV
    stress_unit: str = "eV/A^3"  # or GPa, kbar; with a minus in front for the pressure's sign

    def __post_init__(self):
        if self.stress_unit not in STRESS_UNITS:
            raise ValueError(
                f"stress_unit is {self.stress_unit!r}; choose one of {', '.join(STRESS_UNITS)}"
            )


def read(path, keys=LabelKeys()):
    """All structures of a file, or of every file in a folder, with their labels.

    Args:
      path: anything ASE reads: extended XYZ, .traj, ASE databases, VASP OUTCAR and vasprun.xml, …
      keys: where the labels are; None reads none.

    Returns:
      list of `Structure`. A label that some frames lack is None there.

    Raises:
      FileNotFoundError: no such file or folder.
      ValueError: a file that ASE cannot read, no frame, several candidates for a label, or no
        energies or forces at all.
    """
    frames = read_atoms(path)
    if keys is None:
        return [from_ase(atoms, name) for name, atoms in frames]
    found = [_candidates(atoms) for _, atoms in frames]
    chosen = {
        kind: _choose(path, kind, getattr(keys, f"{kind}_key"), frames, found)
        for kind in ("energy", "forces", "stress")
    }
    return [_labelled(name, atoms, chosen, keys) for name, atoms in frames]


def files_of(path):
    """The file, or all files of a folder but hidden ones, in order."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path of the data")
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name[0] != ".")
    if not files:
        raise ValueError(f"the folder {path} is empty; give a folder with structure files")
    return files


def _read_file(path):
    try:
        images = ase.io.read(path, index=":")
    except (UnknownFileTypeError, StopIteration) as error:
        raise ValueError(
            f"{path} is of no format that ASE reads ({error}); convert it to extended XYZ"
        ) from None
    except Exception as error:  # each of ASE's readers fails in its own way on a damaged file
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    return [(f"{path.name}#{index}", atoms) for index, atoms in enumerate(images)]


def read_atoms(path):
    """(name, `ase.Atoms`) of every frame of a file or folder, as ASE gives them; see `read`."""
    frames = [frame for file in files_of(Path(path)) for frame in _read_file(file)]
    if not frames:
        raise ValueError(f"{path} holds no frames; give a file with at least one structure")
    return frames


def _candidates(atoms):
    """Every value of a frame that looks like a label by its name: {kind: {key: value}}."""
    results = getattr(atoms.calc, "results", {})
    # Results are read directly, since `get_forces` would zero those of fixed atoms.
    sources = {
        "energy": {**atoms.info, **results},
        "forces": {**atoms.arrays, **results},
        "stress": {**atoms.info, **results},
    }
    found = {}
    for kind, pattern in PATTERNS.items():
        named = {k: v for k, v in sources[kind].items() if pattern.fullmatch(k) and v is not None}
        found[kind] = {k: v for k, v in named.items() if SECOND_CHOICE.get(k) not in named}
        for key in named:
            twice = atoms.info.get(key) if kind != "forces" else atoms.arrays.get(key)
            if key in results and twice is not None and not _same(results[key], twice):
                raise ValueError(
                    f"a frame holds two different values named {key!r}, one as a calculator's "
                    "result and one beside it; remove or rename one of them"
                )
    return found


def _same(one, other):
    one, other = np.asarray(one, float), np.asarray(other, float)
    return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=1e-6)


def _choose(path, kind, wanted, frames, found):
    """The key of a label in all frames, or None."""
    if wanted == "none":
        return None
    if wanted != "auto":
        where = "arrays" if kind == "forces" else "info"
        for _, atoms in frames:
            if wanted in getattr(atoms, where) or wanted in getattr(atoms.calc, "results", {}):
                return wanted
        raise ValueError(f"{path} has no {kind} under the key {wanted!r}; found {_listing(frames)}")
    keys = sorted({key for frame in found for key in frame[kind]})
    if len(keys) > 1:
        raise ValueError(
            f"{path} has {len(keys)} candidates for the {kind}: {', '.join(keys)}; choose one with "
            f"--{kind}-key"
        )
    if not keys and kind != "stress":
        raise ValueError(
            f"{path} has no {kind}; found {_listing(frames)}. Name the key with "
            f"--{kind}-key, or write --{kind}-key none to go without"
        )
    return keys[0] if keys else None


def _listing(frames):
    keys = {key for _, atoms in frames for key in (*atoms.info, *atoms.arrays)}
    keys |= {key for _, atoms in frames for key in getattr(atoms.calc, "results", {})}
    keys -= {"numbers", "positions"}
    return f"the keys {', '.join(sorted(keys))}" if keys else "no keys at all"


def _labelled(name, atoms, chosen, keys):
    results = getattr(atoms.calc, "results", {})

    def value(kind, place):
        key = chosen[kind]
        return None if key is None else results.get(key, place.get(key))

    energy = value("energy", atoms.info)
    stress = value("stress", atoms.info)
    structure = from_ase(atoms, name)
    if stress is not None:
        stress = _full_stress(name, stress) * STRESS_UNITS[keys.stress_unit]
        if re.search("virials?$", chosen["stress"], re.IGNORECASE):
            stress = -stress / structure.volume if np.isfinite(structure.volume) else None
    if energy is not None:
        if np.size(energy) != 1 or not np.isreal(energy):
            raise ValueError(f"{name}: the energy {chosen['energy']} is {energy}, not one number")
        energy = float(np.reshape(energy, -1)[0])
    return replace(
        structure,
        energy=energy,
        forces=value("forces", atoms.arrays),
        stress=stress,
        group=str(atoms.info.get("config_type", "")),
    )


def _full_stress(name, stress):
    """[3, 3] from six numbers in Voigt's order xx yy zz yz xz xy, nine, or a tensor."""
    stress = np.asarray(stress, float)
    if stress.size == 9:
        tensor = stress.reshape(3, 3)
        if not np.allclose(tensor, tensor.T, atol=1e-6 + 1e-3 * np.abs(tensor).max()):
            raise ValueError(f"{name}: the stress {tensor.tolist()} is not symmetric")
        return tensor
    if stress.size != 6:
        raise ValueError(f"{name}: the stress has {stress.size} numbers; give 6 or 9")
    xx, yy, zz, yz, xz, xy = stress.reshape(6)
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def split(structures, fraction, seed):
    """Two lists drawn at random: the rest, and `fraction` of the structures for validation.

    Raises:
      ValueError: a fraction outside (0, 1), or one that leaves either list empty.
    """
    n_valid = round(fraction * len(structures))
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


def is_isolated(structure, cutoff):
    """True for a single atom without neighbours within the cutoff."""
    return len(structure) == 1 and not build_table(structure, cutoff).used.any()


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
      ValueError: an element without E0, two energies for one element, or a table that cannot be
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
        raise ValueError(
            f"E0 of {', '.join(missing)} is missing ({source} has "
            f"{', '.join(symbol(z) for z in sorted(values)) or 'none'}); add it, or write --e0 fit"
        )
    return AtomicEnergies({z: values[z] for z in elements}, source)


def _energies_of_atoms(structures):
    values = {}
    for structure in structures:
        if len(structure) != 1 or structure.energy is None:
            raise ValueError(
                f"{structure.name} has {len(structure)} atoms and energy {structure.energy}; a "
                "file for E0 holds single atoms with an energy"
            )
        z = int(structure.numbers[0])
        if z in values and abs(values[z] - structure.energy) > 1e-6:
            raise ValueError(
                f"{structure.name}: {symbol(z)} has two energies, {values[z]} and "
                f"{structure.energy} eV; keep one"
            )
        values[z] = structure.energy
    return values


def _energies_of_table(text):
    values = {}
    for entry in text.split(","):
        name, _, number = entry.partition("=")
        try:
            values[number_of(name)] = float(number)
        except ValueError:
            raise ValueError(
                f"E0 table entry {entry.strip()!r} is not element=energy; write for instance "
                '"H=-13.6, O=-2043.2"'
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
