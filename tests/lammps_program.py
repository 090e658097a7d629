"""What tests run under `mpiexec`: LAMMPS simulations driven by potentials, one after another.

python lammps_program.py cases.json answers.json
"""

import json
import sys
from pathlib import Path

import numpy as np

from mlip.engines.lammps import drive, evaluate_part, start


def frame(engine, comm):
    """What all ranks hold of the atoms, in the order of their identifiers."""
    n_own = engine.extract_setting("nlocal")
    own = {
        name: engine.numpy.extract_atom(key, nelem=n_own).copy()
        for name, key in {"positions": "x", "velocities": "v", "forces": "f", "tags": "id"}.items()
    }
    own["energies"] = engine.numpy.extract_compute("atoms", 1, 1)[:n_own].copy()
    ranks = comm.allgather(own)
    order = np.argsort(np.concatenate([rank["tags"] for rank in ranks]))
    together = {name: np.concatenate([r[name] for r in ranks])[order].tolist() for name in own}
    low, high, xy, yz, xz, *_ = engine.extract_box()
    cell = np.diag(np.subtract(high, low))
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    return together | {
        "cell": cell.tolist(),
        "owners": [rank["tags"].tolist() for rank in ranks],
        "thermo": engine.last_thermo(),
    }


def answer(case):
    engine = start(["-screen", "none", "-log", "none"])
    comm = engine.get_mpi_comm()
    frames, before = [], evaluate_part.jitted._cache_size()
    try:
        engine.commands_string(case["system"])
        drive(engine, case["model"], case["elements"], **case.get("options", {}))
        for commands in case["commands"]:
            engine.commands_string(commands)
            frames.append(frame(engine, comm))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        engine.close()
    programs = comm.allgather(evaluate_part.jitted._cache_size() - before)
    return {"frames": frames, "programs": max(programs)}


cases = json.loads(Path(sys.argv[1]).read_text())
answers = {name: answer(case) for name, case in cases.items()}
from mpi4py import MPI  # noqa: E402, after `start` has found its library

if MPI.COMM_WORLD.rank == 0:
    Path(sys.argv[2]).write_text(json.dumps(answers))
