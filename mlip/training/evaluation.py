"""How good a potential is: errors by property, element and group of frames."""

from dataclasses import dataclass

import numpy as np

from mlip.data.structure import symbol
from mlip.units import MEV


@dataclass(frozen=True)
class Parity:
    """Reference and predicted values of one property, flattened over a data set."""

    reference: np.ndarray  # [n]
    predicted: np.ndarray  # [n]
    n_atoms: np.ndarray  # [n] atoms of the structure a value belongs to
    group: np.ndarray  # [n] the structure's group
    element: np.ndarray | None = None  # [n] symbol of the atom, for forces

    def errors(self, chosen=slice(None)):
        return (self.predicted - self.reference)[chosen]


def parity(structures, predictions):
    """`Parity` of energy, forces and stress over the frames that have the label.

    Returns:
      {"energy": …, "forces": …, "stress": …} in eV, eV/Å and eV/Å³; a property without a single
      label is absent.
    """
    rows = {"energy": [], "forces": [], "stress": []}
    for structure, prediction in zip(structures, predictions):
        about = (len(structure), structure.group)
        if structure.energy is not None:
            rows["energy"].append((structure.energy, prediction.energy, *about, ""))
        if structure.forces is not None:
            symbols = np.repeat([symbol(z) for z in structure.numbers], 3)
            rows["forces"].append((structure.forces, prediction.forces, *about, symbols))
        if structure.stress is not None and prediction.stress is not None:
            rows["stress"].append((structure.stress, prediction.stress, *about, ""))
    found = {}
    for name, entries in rows.items():
        if not entries:
            continue
        reference, predicted, n_atoms, group, element = zip(*entries)
        sizes = [np.size(values) for values in reference]
        found[name] = Parity(
            np.concatenate([np.ravel(values) for values in reference]),
            np.concatenate([np.ravel(values) for values in predicted]),
            np.repeat(n_atoms, sizes),
            np.repeat(np.array(group, dtype=object), sizes),
            np.concatenate(element) if name == "forces" else None,
        )
    return found


def metrics(found):
    """Errors of a data set from its `parity`, in meV, meV/Å and meV/Å³, ready for JSON.

    Returns:
      `energy_mae_mev_per_atom`, `energy_rmse_mev_per_atom`, `energy_mae_mev`, `energy_rmse_mev`
      (per structure), `forces_mae_mev_per_A`, `forces_rmse_mev_per_A`, `stress_mae_mev_per_A3`,
      `stress_rmse_mev_per_A3` (None where no frame has the label), the numbers of labels, and the
      same under `elements` (forces) and `groups` (by `config_type`).
    """
    out = _errors(found)
    forces = found.get("forces")
    out["elements"] = {}
    if forces is not None:
        for element in sorted(set(forces.element)):
            chosen = forces.element == element
            out["elements"][element] = _pair("forces", "_mev_per_A", forces.errors(chosen))
    groups = sorted({group for values in found.values() for group in values.group})
    out["groups"] = {group: _errors(found, group) for group in groups if len(groups) > 1 or group}
    return out


COLUMNS = {
    "energy, meV/atom": "energy_rmse_mev_per_atom",
    "energy, meV/structure": "energy_rmse_mev",
    "forces, meV/Å": "forces_rmse_mev_per_A",
    "stress, meV/Å³": "stress_rmse_mev_per_A3",
}


def error_rows(errors):
    """`metrics` as rows of a table.

    Returns:
      headings of the columns that have values, and (name, [(RMSE, MAE) of each column]) for all
      frames, each group and each element; None where there is no value.
    """
    columns = {text: key for text, key in COLUMNS.items() if errors[key] is not None}
    parts = [("all frames", errors)]
    parts += [(name or "no config_type", found) for name, found in errors["groups"].items()]
    parts += [(f"forces on {name}", found) for name, found in errors["elements"].items()]
    rows = [
        (
            name,
            [(found.get(key), found.get(key.replace("rmse", "mae"))) for key in columns.values()],
        )
        for name, found in parts
    ]
    return list(columns), rows


def _errors(found, group=None):
    out = {}
    scales = {
        "energy": ("_mev_per_atom", lambda values: values.n_atoms),
        "forces": ("_mev_per_A", lambda values: 1.0),
        "stress": ("_mev_per_A3", lambda values: 1.0),
    }
    for name, (unit, divisor) in scales.items():
        values = found.get(name)
        errors = {unit: None, **({"_mev": None} if name == "energy" else {})}
        if values is not None:
            chosen = slice(None) if group is None else values.group == group
            errors[unit] = (values.errors() / divisor(values))[chosen]
            if name == "energy":
                errors["_mev"] = values.errors(chosen)
        count = 0 if errors[unit] is None else len(errors[unit])
        out[f"n_{name}"] = count
        for unit, error in errors.items():
            out |= _pair(name, unit, error if count else None)
    return out


def _pair(name, unit, error):
    if error is None:
        return {f"{name}_mae{unit}": None, f"{name}_rmse{unit}": None}
    return {
        f"{name}_mae{unit}": float(MEV * np.abs(error).mean()),
        f"{name}_rmse{unit}": float(MEV * np.sqrt((error**2).mean())),
    }
