"""Structure: one configuration of atoms, with the labels it may carry."""

from dataclasses import dataclass, field, replace

import ase
import numpy as np
from ase.data import atomic_masses, atomic_numbers, chemical_symbols, covalent_radii

from mlip.data.quantities import DERIVED, QUANTITIES

COVALENT_RADII = covalent_radii  # Å, by atomic number; Cordero et al. 2008


# Å, eV/Å and eV/Å³: beyond, float64 leaves too few digits of distances and sums.
LARGEST = 1e7
LARGEST_ENERGY = 1e12  # eV: a million atoms of gold with all their electrons have 5e11


class Unusable(ValueError):
    """Data that cannot be used: the broken rule in a word, the problem, and the remedy."""

    def __init__(self, rule, problem, remedy):
        super().__init__(f"{problem}; {remedy}")
        self.rule, self.problem, self.remedy = rule, problem, remedy


@dataclass(frozen=True)
class Structure:
    """Atoms in a cell that may be periodic; checked when made, in float64.

    Raises:
      Unusable: an array of the wrong shape, a number that is not finite, an element outside
        H … Og, no atom, or a periodic axis without a lattice vector.
    """

    numbers: np.ndarray  # [n_atoms] atomic numbers
    positions: np.ndarray  # [n_atoms, 3] Å
    cell: np.ndarray  # [3, 3] Å, lattice vectors as rows; zero along axes without one
    pbc: np.ndarray  # [3] True along periodic axes
    energy: float | None = None  # eV
    forces: np.ndarray | None = None  # [n_atoms, 3] eV/Å
    stress: np.ndarray | None = None  # [3, 3] eV/Å³, positive when the cell wants to shrink
    # Labels of further quantities, by name, in their units; shapes as the table has them.
    others: dict[str, np.ndarray] = field(default_factory=dict)
    name: str = "structure"  # for messages, such as train.xyz#12
    group: str = ""  # the data set's own kind of frame, its `config_type`

    def __post_init__(self):
        convert = {
            "numbers": (int, (-1,)),
            "positions": (float, (-1, 3)),
            "cell": (float, (3, 3)),
            "pbc": (bool, (3,)),
        }
        if self.forces is not None:
            convert["forces"] = (float, (len(self.numbers), 3))
        if self.stress is not None:
            convert["stress"] = (float, (3, 3))
        others = {}
        for name, values in self.others.items():
            if name not in QUANTITIES or name in DERIVED:
                known = ", ".join(sorted(set(QUANTITIES) - set(DERIVED)))
                raise Unusable(
                    "unknown-quantity",
                    f"{self.name}: {name!r} is none of the further quantities ({known})",
                    "give energy, forces and stress by their own names",
                )
            row = QUANTITIES[name]
            if row.molecular and np.any(self.pbc):
                raise Unusable(
                    "periodic",
                    f"{self.name} is periodic and has a {name}, which is defined only up to "
                    "multiples of the lattice vectors there, and jumps",
                    f"take molecules, or leave it away with --{name}-key none",
                )
            shape = row.shape if row.of == "structure" else (len(self.numbers), *row.shape)
            others[name] = _checked(self.name, name, values, float, shape)
        object.__setattr__(self, "others", others)
        for name, (dtype, shape) in convert.items():
            array = _checked(self.name, name, getattr(self, name), dtype, shape)
            object.__setattr__(self, name, array)
        self._check_atoms()
        if self.energy is not None and not abs(self.energy) <= LARGEST_ENERGY:
            raise Unusable(
                "too-large" if np.isfinite(self.energy) else "not-finite",
                f"{self.name}: the energy is {self.energy:g} eV",
                "check its unit, or remove the frame",
            )
        periodic = self.cell[self.pbc]
        lengths = np.linalg.norm(periodic, axis=1)
        area = np.sqrt(max(np.linalg.det(periodic @ periodic.T), 0.0))
        if len(periodic) and area < 1e-6 * max(lengths.prod(), 1.0):
            raise Unusable(
                "no-cell",
                f"{self.name}: the periodic lattice vectors {periodic.tolist()} are zero or "
                "linearly dependent",
                "correct the cell or the periodic flags",
            )

    def _check_atoms(self):
        if len(self.numbers) == 0:
            raise Unusable("no-atoms", f"{self.name}: there are no atoms", "remove the frame")
        if len(self.numbers) != len(self.positions):
            raise Unusable(
                "wrong-shape",
                f"{self.name}: {len(self.numbers)} atomic numbers but "
                f"{len(self.positions)} positions",
                "give as many of one as of the other",
            )
        wrong = self.numbers[(self.numbers < 1) | (self.numbers >= len(chemical_symbols))]
        if len(wrong):
            raise Unusable(
                "unknown-element",
                f"{self.name}: atomic number {wrong[0]} is no element",
                f"it must lie between 1 and {len(chemical_symbols) - 1}; correct its symbol",
            )

    def __len__(self):
        return len(self.numbers)

    @property
    def volume(self):
        """Å³; infinite for a molecule or where an axis has no lattice vector: no stress there."""
        volume = abs(np.linalg.det(self.cell))
        return volume if self.pbc.any() and volume > 1e-6 else np.inf

    def repeat(self, counts):
        """The supercell with `counts` copies along the lattice vectors, without labels."""
        return from_ase(to_ase(self).repeat(counts), name=self.name)

    def label(self, name):
        """The label of a quantity of the table, or None."""
        return getattr(self, name) if name in DERIVED else self.others.get(name)

    def without_labels(self):
        return replace(self, energy=None, forces=None, stress=None, others={})


def _checked(name, what, values, dtype, shape):
    """Values as an array that cannot be changed, of this type and shape (-1 for any length)."""
    try:
        array = np.array(values, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise Unusable(
            "not-numbers", f"{name}: {what} are not numbers ({error})", "correct the frame"
        ) from None
    if array.ndim != len(shape) or any(s not in (-1, a) for s, a in zip(shape, array.shape)):
        raise Unusable(
            "wrong-shape",
            f"{name}: {what} have shape {array.shape}; expected "
            f"{str(shape).replace('-1', 'n_atoms')}",
            "correct the frame or remove it",
        )
    if dtype is float and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))[0]
        raise Unusable(
            "not-finite",
            f"{name}: {what} hold {array[tuple(bad)]} at {tuple(bad.tolist())}",
            "remove the frame or mend its source",
        )
    if dtype is float and array.size and (most := np.abs(array).max()) > LARGEST:
        raise Unusable(
            "too-large",
            f"{name}: {what} reach {most:.3g}, where {LARGEST:g} (of Å and eV) is the most",
            "check their unit, or remove the frame",
        )
    array.setflags(write=False)
    return array


def from_ase(atoms, name="structure", **labels):
    """Structure of an `ase.Atoms`. Labels and group are taken from the arguments alone."""
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        name=name,
        **labels,
    )


def to_ase(structure):
    """`ase.Atoms` of a structure, without its labels."""
    return ase.Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)


def symbol(number):
    return chemical_symbols[number]


def mass(number):
    """Of an element, amu."""
    return float(atomic_masses[number])


def number_of(symbol_or_number):
    """Atomic number of "Si", 14 or "14".

    Raises:
      ValueError: no such element.
    """
    text = str(symbol_or_number).strip()
    number = int(text) if text.isdecimal() else atomic_numbers.get(text.capitalize(), 0)
    if not 1 <= number < len(chemical_symbols):
        raise ValueError(f"{text!r} is no chemical element; write a symbol such as Si")
    return number
