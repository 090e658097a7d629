"""Labels: where files keep energies, forces and stresses, and in which units; frames in and out."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import UnknownFileTypeError

from mlip.data.quantities import DERIVED, QUANTITIES, settings_of_quantities
from mlip.data.structure import Unusable, from_ase, to_ase

STRESS_ORDERS = {"voigt": "xx yy zz yz xz xy", "vasp": "xx yy zz xy yz xz"}
# Calculators write this beside `energy`; it counts only where it stands alone.
SECOND_CHOICE = {"free_energy": "energy"}
# Of a calculator, in ASE's units whatever those of energies and forces are.
KEPT_RESULTS = ("charges", "dipole", "magmom", "magmoms")


_KeysAndUnits = settings_of_quantities(
    "_KeysAndUnits",
    {
        # Of what models do not all predict, nothing is read that nobody asks for.
        "key": lambda quantity: (str, "auto" if quantity.derived else "none", quantity.key_help),
        "unit": lambda quantity: (str, next(iter(quantity.units)), quantity.unit_help),
    },
)


@dataclass(frozen=True)
class LabelKeys(_KeysAndUnits):
    """Where a data set keeps its labels, and in which units."""

    stress_order: str = "voigt"  # of six: voigt xx yy zz yz xz xy, vasp xx yy zz xy yz xz, or any

    def __post_init__(self):
        for name, quantity in QUANTITIES.items():
            if self.unit(name) not in quantity.units:
                raise ValueError(
                    f"{name}_unit is {self.unit(name)!r}; choose one of {', '.join(quantity.units)}"
                )
        if sorted(self.order_of_stress()) != sorted(STRESS_ORDERS["voigt"].split()):
            raise ValueError(
                f"stress_order is {self.stress_order!r}; write voigt, vasp, or the six components "
                'as they stand, such as "xx yy zz xy xz yz"'
            )

    def key(self, name):
        """Where a quantity is looked for."""
        return getattr(self, f"{name}_key")

    def unit(self, name):
        """The unit that a file has it in."""
        return getattr(self, f"{name}_unit")

    def order_of_stress(self):
        """The six components as they stand in the file."""
        order = STRESS_ORDERS.get(self.stress_order, self.stress_order)
        return order.replace(",", " ").split()


@dataclass(frozen=True)
class Frame:
    """One frame as its file holds it, unchecked, with every value that is named like a label."""

    file: Path
    index: int
    atoms: ase.Atoms
    labels: dict  # {kind: {key: value}}
    twofold: frozenset  # keys with one value among a calculator's results and another beside them

    @property
    def name(self):
        return f"{self.file.name}#{self.index}"

    def value(self, kind, key):
        """What stands under a key, or None."""
        results = getattr(self.atoms.calc, "results", {})
        place = self.atoms.arrays if QUANTITIES[kind].of == "atom" else self.atoms.info
        return results.get(key, place.get(key))

    def keys(self):
        """All keys of the frame but those of the atoms themselves."""
        named = {*self.atoms.info, *self.atoms.arrays, *getattr(self.atoms.calc, "results", {})}
        return named - {"numbers", "positions"}


def read_file(path):
    """All frames of one file.

    Raises:
      Unusable: the file is of no format that ASE reads, or damaged.
    """
    if path.suffix in (".xyz", ".extxyz"):
        _refuse_impossible_counts(path)
    try:
        images = ase.io.read(path, index=":", do_not_split_by_at_sign=True)
    except (UnknownFileTypeError, StopIteration) as error:
        raise Unusable(
            "unreadable",
            f"{path} is of no format that ASE reads ({error})",
            "convert it to extended XYZ",
        ) from None
    except Exception as error:  # each of ASE's readers fails in its own way on a damaged file
        raise Unusable(
            "unreadable",
            f"{path} cannot be read: {type(error).__name__}: {error}",
            "correct what is named, or copy the file again from where it was made",
        ) from None
    return [_frame(path, index, atoms) for index, atoms in enumerate(images)]


def _refuse_impossible_counts(path):
    """ASE would look for the atoms of a frame until their count is reached, long after the end."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        for index, line in enumerate(iter(file.readline, b"")):
            # Of more than 4300 digits Python makes no integer; 20 exceed any file.
            digits = line.strip()[:20]
            count = int(digits) if digits.isdigit() else 0
            if count > size:
                raise Unusable(
                    "unreadable",
                    f"{path}: frame {index} announces {count} atoms, more than the file holds",
                    "copy it again from where it was made, or remove the damaged frame",
                )
            for _ in itertools.islice(file, count + 1):
                pass


def _frame(path, index, atoms):
    # Results are read directly, since `get_forces` would zero those of fixed atoms.
    results = getattr(atoms.calc, "results", {})
    labels, twofold = {}, set()
    for kind, quantity in QUANTITIES.items():
        beside = atoms.arrays if quantity.of == "atom" else atoms.info
        named = {
            key: value
            for key, value in {**beside, **results}.items()
            if quantity.pattern.fullmatch(key) and value is not None
        }
        labels[kind] = {k: v for k, v in named.items() if SECOND_CHOICE.get(k) not in named}
        both = [key for key in named if key in results and beside.get(key) is not None]
        twofold |= {key for key in both if not _same(results[key], beside[key])}
    return Frame(path, index, atoms, labels, frozenset(twofold))


def _same(one, other):
    try:
        one, other = np.asarray(one, float), np.asarray(other, float)
    except (TypeError, ValueError):
        return False
    return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=1e-6)


def choose_keys(keys, frames, path):
    """{quantity: key or None} of all quantities; see `choose_key`."""
    return {name: choose_key(name, keys.key(name), frames, path) for name in QUANTITIES}


def choose_key(kind, wanted, frames, path):
    """The key of a label in all frames, or None for none.

    Args:
      kind: name of a quantity.
      wanted: a key, "auto" or "none".
      path: of the data, for messages.

    Raises:
      Unusable: two candidates, or none.
    """
    if wanted == "none":
        return None
    if wanted != "auto":
        if any(frame.value(kind, wanted) is not None for frame in frames):
            return wanted
        raise Unusable(
            "no-label",
            f"{path} has no {kind} under the key {wanted!r}; found {listing(frames)}",
            f"name one of them with --{kind}-key",
        )
    keys = sorted({key for frame in frames for key in frame.labels[kind]})
    if len(keys) > 1:
        raise Unusable(
            "two-candidates",
            f"{path} has {len(keys)} candidates for the {kind}: {', '.join(keys)}",
            f"choose one with --{kind}-key",
        )
    if kind == "forces" and all(len(frame.atoms) == 1 for frame in frames):
        return keys[0] if keys else None
    if not keys and QUANTITIES[kind].needed:
        raise Unusable(
            "no-label",
            f"{path} has no {kind}; found {listing(frames)}",
            f"name the key with --{kind}-key, or write --{kind}-key none to go without",
        )
    return keys[0] if keys else None


def is_label(key):
    """True of a key that is named like a label that every model has."""
    return any(QUANTITIES[name].pattern.fullmatch(key) for name in DERIVED)


def listing(frames):
    keys = sorted({key for frame in frames for key in frame.keys()})
    return f"the keys {', '.join(keys)}" if keys else "no keys at all"


def structure_of(frame, chosen, keys=LabelKeys()):
    """The checked structure of a frame, its labels in eV and Å.

    Args:
      chosen: {kind: key}; a kind that is absent or None is left out.
      keys: the units.

    Raises:
      Unusable: a structure or label that cannot be used.
    """
    values = {}
    for kind, key in chosen.items():
        value = None if key is None else frame.value(kind, key)
        if value is None:
            continue
        if key in frame.twofold:
            raise Unusable(
                "two-values",
                f"{frame.name} holds two different values named {key!r}, one as a calculator's "
                "result and one beside it",
                "remove or rename one of them",
            )
        values[kind] = _numbers(frame, kind, key, value)
    factors = {name: QUANTITIES[name].units[keys.unit(name)] for name in values}
    values = {name: value * factors[name] for name, value in values.items()}
    if "energy" in values:
        values["energy"] = _energy(frame, chosen["energy"], values["energy"])
    if "stress" in values:
        tensor = _full_stress(frame.name, values["stress"], keys.order_of_stress())
        if re.search("virials?$", chosen["stress"], re.IGNORECASE):
            volume = from_ase(frame.atoms, frame.name).volume
            tensor = -tensor / volume if np.isfinite(volume) else None
        values["stress"] = tensor
    group = str(frame.atoms.info.get("config_type", ""))
    others = {name: values.pop(name) for name in sorted(set(values) - set(DERIVED))}
    return from_ase(frame.atoms, frame.name, **values, others=others, group=group)


def _numbers(frame, kind, key, value):
    try:
        if np.asarray(value).dtype.kind in "bc":  # true, false or complex
            raise TypeError
        return np.asarray(value, float)
    except (TypeError, ValueError):
        raise Unusable(
            "not-numbers",
            f"{frame.name}: the {kind} under {key!r} are {str(value)[:60]!r}, which are no numbers",
            f"correct the frame, or name another key with --{kind}-key",
        ) from None


def _energy(frame, key, value):
    if value.size != 1:
        raise Unusable(
            "wrong-shape",
            f"{frame.name}: the energy {key} is {value.tolist()}, not one number"[:200],
            "give the energy of the whole structure",
        )
    return float(value.reshape(()))


def _full_stress(name, stress, order):
    """[3, 3] from six numbers in this order of components, nine, or a tensor."""
    if stress.size == 9:
        tensor = stress.reshape(3, 3)
        tolerance = 1e-6 + 1e-3 * np.abs(tensor).max()
        if np.isfinite(tensor).all() and not np.allclose(tensor, tensor.T, rtol=0, atol=tolerance):
            raise Unusable(
                "asymmetric-stress",
                f"{name}: the stress {tensor.tolist()} is not symmetric",
                "check what the numbers are; a stress is symmetric",
            )
        return tensor
    if stress.size != 6:
        raise Unusable(
            "wrong-shape", f"{name}: the stress has {stress.size} numbers", "give 6 or 9 of them"
        )
    value = dict(zip(order, stress.reshape(6)))
    return np.array([[value["".join(sorted(i + j))] for j in "xyz"] for i in "xyz"])


def write_frames(path, frames, structures):
    """Write structures as extended XYZ: eV, Å, ASE's names and signs, else as their frames are.

    Args:
      path: of the file.
      frames: what the structures were made of; their other keys are kept, but those that are
        named like a label and would be second candidates.
      structures: as many.

    Returns:
      the set of the keys that were left out, those of the labels among them.
    """
    images, lost = [], set()
    for frame, structure in zip(frames, structures):
        atoms = to_ase(structure)
        named = {key for key in frame.keys() if is_label(key)}
        atoms.info |= {k: v for k, v in frame.atoms.info.items() if k not in named}
        for key, values in frame.atoms.arrays.items():
            if key not in named and key not in atoms.arrays:
                atoms.set_array(key, values)
        labels = {name: structure.label(name) for name in QUANTITIES}
        labels = {name: value for name, value in labels.items() if value is not None}
        results = getattr(frame.atoms.calc, "results", {})
        kept = (key for key in KEPT_RESULTS if results.get(key) is not None)
        labels |= {key: results[key] for key in kept if key not in labels}
        for name in [name for name in labels if name not in all_properties]:
            own = atoms.arrays if QUANTITIES[name].of == "atom" else atoms.info
            own[name] = labels.pop(name)
        atoms.calc = SinglePointCalculator(atoms, **labels)
        images.append(atoms)
        lost |= frame.keys() - {*atoms.info, *atoms.arrays, *labels}
    ase.io.write(path, images, format="extxyz")
    return lost
