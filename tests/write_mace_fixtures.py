"""Write small imported models and what mace-torch says with them, for machines without torch.

Run in tests/ with torch and mace-torch installed: python write_mace_fixtures.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import mace_cases

from mlip.model.file import save_model
from mlip.model.mace.from_torch import from_mace

FOLDER = Path(__file__).parent / "fixtures"
NAMES = ("hidden vectors", "MACE", "gaussian agnesi", "like mpa-0")


def write(name):
    model = mace_cases.build(mace_cases.CASES[name])
    source = {"by": f"tests/write_mace_fixtures.py, mace-torch {version('mace-torch')}"}
    path = FOLDER / f"mace_{name.replace(' ', '_')}.safetensors"
    save_model(from_mace(model, training=source), path)
    rows = []
    for kind, structure in mace_cases.structures().items():
        found = mace_cases.evaluate(model, structure)
        rows.append(
            {
                "name": kind,
                "numbers": structure.numbers.tolist(),
                "positions": structure.positions.tolist(),
                "cell": structure.cell.tolist(),
                "pbc": [bool(periodic) for periodic in structure.pbc],
                **{k: v if k == "energy" else v.tolist() for k, v in found.items()},
            }
        )
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    for name in NAMES:
        write(name)
