"""How good a potential is: errors by property, element and group of frames."""

import math
from dataclasses import dataclass

import numpy as np

from mlip.data.quantities import QUANTITIES
from mlip.data.structure import symbol


@dataclass(frozen=True)
class Parity:
    """Reference and predicted values of one property, flattened over a data set."""

    reference: np.ndarray  # [n]
    predicted: np.ndarray  # [n]
    n_atoms: np.ndarray  # [n] atoms of the structure a value belongs to
    group: np.ndarray  # [n] the structure's group
    element: np.ndarray | None = None  # [n] symbol of the atom, for quantities of atoms

    def both(self):
        return self.reference, self.predicted

    def errors(self, chosen=slice(None)):
        return (self.predicted - self.reference)[chosen]


def parity(structures, predictions):
    """`Parity` of every quantity over the frames that have its label.

    Returns:
      {"energy": …, "forces": …, "stress": …, …} in the units of the table; a quantity without a
      single label, or that is not predicted, is absent.
    """
    rows = {name: [] for name in QUANTITIES}
    for structure, prediction in zip(structures, predictions):
        about = (len(structure), structure.group)
        for name, row in QUANTITIES.items():
            label, value = structure.label(name), prediction.value(name)
            if label is not None and value is not None:
                symbols = ""
                if row.of == "atom":
                    symbols = np.repeat(
                        [symbol(z) for z in structure.numbers], math.prod(row.shape)
                    )
                rows[name].append((label, value, *about, symbols))
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
            np.concatenate(element) if QUANTITIES[name].of == "atom" else None,
        )
    return found


def metrics(found):
    """Errors of a data set from its `parity`, in meV, meV/Å, meV/Å³, …, ready for JSON.

    Returns:
      `energy_mae_mev_per_atom`, `energy_rmse_mev_per_atom`, `energy_mae_mev`, `energy_rmse_mev`
      (per structure), `forces_mae_mev_per_A`, `forces_rmse_mev_per_A`, `stress_mae_mev_per_A3`,
      `stress_rmse_mev_per_A3` (None where no frame has the label), those of further quantities
      where they are predicted, the numbers of labels, and the same under `elements` (quantities of
      atoms) and `groups` (by `config_type`).
    """
    out = _errors(found)
    out["elements"] = {}
    for name, values in found.items():
        row = QUANTITIES[name]
        for element in sorted(set(() if values.element is None else values.element)):
            errors = _pair(row, row.suffix, values.errors(values.element == element))
            out["elements"].setdefault(element, {}).update(errors)
    groups = sorted({group for values in found.values() for group in values.group})
    out["groups"] = {group: _errors(found, group) for group in groups if len(groups) > 1 or group}
    return out


def columns():
    """{heading: name of its RMSE} of the table of errors."""
    found = {}
    for name, row in QUANTITIES.items():
        found[f"{name}, {row.shown}"] = f"{name}_rmse_{row.suffix}"
        if row.per_atom:
            found[f"{name}, {row.total}/structure"] = f"{name}_rmse_{row.total_suffix}"
        if row.of == "structure" and row.shape == (3,):
            found[f"size of the {name}, {row.shown}"] = f"{name}_rmse_norm_{row.suffix}"
    return found


def error_rows(errors):
    """`metrics` as rows of a table.

    Returns:
      headings of the columns that have values, and (name, [(RMSE, MAE) of each column]) for all
      frames, each group and each element; None where there is no value.
    """
    shown = {text: key for text, key in columns().items() if errors.get(key) is not None}
    parts = [("all frames", errors)]
    parts += [(name or "no config_type", found) for name, found in errors["groups"].items()]
    of_atoms = [name for name, row in QUANTITIES.items() if row.of == "atom"]
    parts += [
        (f"{kind} on {name}", {k: v for k, v in found.items() if k.startswith(kind)})
        for name, found in errors["elements"].items()
        for kind in of_atoms
        if any(key.startswith(kind) for key in found)
    ]
    rows = [
        (
            name,
            [(found.get(key), found.get(key.replace("rmse", "mae"))) for key in shown.values()],
        )
        for name, found in parts
    ]
    return list(shown), rows


def _errors(found, group=None):
    out = {}
    for name, row in QUANTITIES.items():
        values = found.get(name)
        if values is None and not row.derived:
            continue
        errors = {row.suffix: None, **({row.total_suffix: None} if row.per_atom else {})}
        if values is not None:
            chosen = slice(None) if group is None else values.group == group
            divisor = values.n_atoms if row.per_atom else 1.0
            errors[row.suffix] = (values.errors() / divisor)[chosen]
            if row.per_atom:
                errors[row.total_suffix] = values.errors(chosen)
        count = 0 if errors[row.suffix] is None else len(errors[row.suffix])
        out[f"n_{name}"] = count
        for suffix, error in errors.items():
            out |= _pair(row, suffix, error if count else None)
        if row.of == "structure" and row.shape == (3,) and count:
            sizes = [np.linalg.norm(v[chosen].reshape(-1, 3), axis=1) for v in values.both()]
            out |= _pair(row, f"norm_{row.suffix}", sizes[1] - sizes[0])
    return out


def _pair(row, suffix, error):
    mae, rmse = f"{row.name}_mae_{suffix}", f"{row.name}_rmse_{suffix}"
    if error is None:
        return {mae: None, rmse: None}
    return {
        mae: float(row.factor * np.abs(error).mean()),
        rmse: float(row.factor * np.sqrt((error**2).mean())),
    }
