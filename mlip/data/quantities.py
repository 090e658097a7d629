"""The table of quantities: what can be a label, is predicted, trained on, measured and shown.

To add one, write its row into QUANTITIES. Its label, keys, units and their flags, its weight in
the loss, errors, plots and reports follow from the row; it is read where the loss weighs it.
Models that predict it name it in their `quantities` and give its values in `Outputs.quantities`.
"""

import re
from dataclasses import dataclass, field, make_dataclass

from mlip.units import BOHR, DEBYE, GPA, HARTREE, KBAR, KCAL_MOL, KJ_MOL, MEV, RYDBERG

ENERGY_UNITS = {
    "eV": 1.0,
    "Hartree": HARTREE,
    "Ry": RYDBERG,
    "kcal/mol": KCAL_MOL,
    "kJ/mol": KJ_MOL,
}
# A minus stands for gradients, which some programs print instead of forces.
FORCES_UNITS = {
    f"{sign}{energy}/{length}": (-1 if sign else 1) * ENERGY_UNITS[energy] / angstroms
    for sign in ("", "-")
    for energy in ENERGY_UNITS
    for length, angstroms in (("A", 1.0), ("Bohr", BOHR))
}
# Stresses are taken with ASE's sign; codes that print the pressure tensor need a minus.
STRESS_UNITS = {
    f"{sign}{unit}": (-1 if sign else 1) * value
    for sign in ("", "-")
    for unit, value in (
        ("eV/A^3", 1.0),
        ("GPa", GPA),
        ("kbar", KBAR),
        ("Hartree/Bohr^3", HARTREE / BOHR**3),
        ("Ry/Bohr^3", RYDBERG / BOHR**3),
    )
}


@dataclass(frozen=True)
class Quantity:
    """One row. A value turns with the structure: numbers stay, vectors and tensors rotate."""

    name: str
    of: str  # structure or atom
    shape: tuple[int, ...]  # of one value: () a number, (3,) a vector, (3, 3) a tensor
    unit: str  # in which it is kept
    shown: str  # unit in which errors are shown
    factor: float  # shown units in one unit
    suffix: str  # of the names of its errors
    weight: float  # in the loss by default
    pattern: re.Pattern  # of the keys that files may have it under
    units: dict[str, float]  # that files may have it in; the first is the usual one
    title: str  # of one number
    color: str
    key_help: str
    unit_help: str
    weight_help: str
    per_atom: bool = False  # its error is divided by the number of atoms; also shown undivided:
    total: str = ""  # unit of that
    total_suffix: str = ""  # of its name
    molecular: bool = False  # it is defined for structures that are not periodic
    derived: bool = False  # every model gives it: the energy and its derivatives
    needed: bool = False  # a data set without it is refused, unless that is asked for


QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity(
            name="energy",
            of="structure",
            shape=(),
            unit="eV",
            shown="meV/atom",
            factor=MEV,
            suffix="mev_per_atom",
            weight=1.0,
            pattern=re.compile(r"(?!.*(kinetic|zero_point|cutoff))(.*_)?energy", re.IGNORECASE),
            units=ENERGY_UNITS,
            title="Energy",
            color="#2f7fb8",
            key_help="key of the energies; auto finds it, none goes without",
            unit_help="or Hartree, Ry, kcal/mol, kJ/mol",
            weight_help="per (eV/atom)²",
            per_atom=True,
            total="meV",
            total_suffix="mev",
            derived=True,
            needed=True,
        ),
        Quantity(
            name="forces",
            of="atom",
            shape=(3,),
            unit="eV/Å",
            shown="meV/Å",
            factor=MEV,
            suffix="mev_per_A",
            weight=100.0,
            pattern=re.compile(r"(.*_)?forces?", re.IGNORECASE),
            units=FORCES_UNITS,
            title="Force component",
            color="#c8553d",
            key_help="key of the forces; auto or none likewise",
            unit_help="or Hartree/Bohr, kcal/mol/A, …; a minus in front for gradients",
            weight_help="per (eV/Å)²",
            derived=True,
            needed=True,
        ),
        Quantity(
            name="stress",
            of="structure",
            shape=(3, 3),
            unit="eV/Å³",
            shown="meV/Å³",
            factor=MEV,
            suffix="mev_per_A3",
            weight=1e4,
            pattern=re.compile(r"(.*_)?(stress|virials?)", re.IGNORECASE),
            units=STRESS_UNITS,
            title="Stress component",
            color="#5f8f3a",
            key_help="of the stress; if it ends in virial(s), it holds −V·stress in eV",
            unit_help="or GPa, kbar, …; with a minus in front for the pressure's sign",
            weight_help="per (eV/Å³)²; 0.1 eV/Å³ is 16 GPa",
            derived=True,
        ),
        Quantity(
            name="dipole",
            of="structure",
            shape=(3,),
            unit="e·Å",
            shown="me·Å",
            factor=1000.0,
            suffix="me_A",
            weight=0.0,
            pattern=re.compile(r"(.*_)?dipoles?(_moment)?", re.IGNORECASE),
            units={"eA": 1.0, "Debye": DEBYE, "eBohr": BOHR},
            title="Dipole component",
            color="#8d6cab",
            key_help="of the dipole moment of a molecule; read where the loss weighs dipoles",
            unit_help="e·Å, or Debye, eBohr",
            weight_help="per (e·Å)²; above 0 the network predicts dipoles",
            molecular=True,
        ),
    )
}
DERIVED = tuple(name for name, row in QUANTITIES.items() if row.derived)


def settings_of_quantities(name, columns):
    """A frozen dataclass with a field for every quantity in each column.

    Args:
      name: of the class.
      columns: {suffix of the field: function of a quantity to (type, default, help)}.
    """
    fields = []
    for suffix, describe in columns.items():
        for quantity in QUANTITIES.values():
            kind, default, text = describe(quantity)
            entry = field(default=default, metadata={"help": text})
            fields.append((f"{quantity.name}_{suffix}", kind, entry))
    return make_dataclass(name, fields, frozen=True)
