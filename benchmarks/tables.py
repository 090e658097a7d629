"""Fill the tables of README.md from the JSON rows in `benchmarks/results`.

python benchmarks/tables.py
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
SETS = ("acac", "ethanol", "silicon")


def accuracy():
    """Errors after some minutes of training, a row for each test set."""
    lines = [
        "| data | frames | training | test | energy RMSE | forces RMSE | stress RMSE |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name in SETS:
        row = json.loads((RESULTS / f"accuracy_{name}.json").read_text())
        for test, errors in row["test"].items():
            stress = errors["stress_rmse_mev_per_A3"]
            lines.append(
                f"| {row['level']} | {row['frames_trained_on']} | {row['minutes']:g} min, "
                f"{len(row['cores'])} core | {test} | "
                f"{errors['energy_rmse_mev_per_atom']:.2f} meV/atom "
                f"({errors['energy_rmse_mev']:.1f} meV/structure) | "
                f"{errors['forces_rmse_mev_per_A']:.1f} meV/Å | "
                + (f"{stress:.2f} meV/Å³ |" if stress is not None else "|")
            )
        notes.append(f"`{row['command']}`")
    lines += [
        "",
        f"Measured on {row['date']}, {row['processor']}, jax {row['versions']['jax']}, float32, "
        "all settings at their defaults. Reproduce with " + ", ".join(notes) + ".",
    ]
    return "\n".join(lines)


def over_time():
    """Test errors on acetylacetone while the training goes on."""
    row = json.loads((RESULTS / "accuracy_acac.json").read_text())
    chosen = [s for s in row["over_time"] if round(s["minutes"]) in (2, 5, 10, 15)]
    last = {"minutes": row["minutes"], **row["test"]}
    lines = ["| minutes | energy, meV/molecule | forces, meV/Å |", "|---|---|---|"]
    for snapshot in [*chosen, last]:
        errors = snapshot["300 K"]
        lines.append(
            f"| {snapshot['minutes']:.0f} | {errors['energy_rmse_mev']:.1f} | "
            f"{errors['forces_rmse_mev_per_A']:.1f} |"
        )
    return "\n".join(lines)


TABLES = {"accuracy": accuracy, "over-time": over_time}


def filled(text):
    """The README's text with every table written anew."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        new = table() + "\n"
        text, count = re.subn(pattern, lambda m, n=new: m[1] + n + m[2], text, flags=re.DOTALL)
        assert count == 1, f"README.md has no table {name}"
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
