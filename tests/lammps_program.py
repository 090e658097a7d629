"""What tests run under `mpiexec`: one LAMMPS simulation driven by a potential.

python lammps_program.py settings.json; the answers go to the file that the settings name.
"""

import json
import sys

import numpy as np

from mlip.deploy.lammps import drive, evaluate_part, start

settings = json.loads(open(sys.argv[1]).read())
engine = start(["-screen", "none", "-log", settings["out"] + ".log"])
comm = engine.get_mpi_comm()
answers = {"ranks": comm.size}
try:
    engine.commands_string(settings["system"])
    driver = drive(engine, settings["model"], settings["elements"], **settings.get("options", {}))
    frames = []
    for commands in settings["commands"]:
        engine.commands_string(commands)
        thermo = engine.last_thermo()
        by_tag = {}
        for name, source in {"x": "positions", "v": "velocities", "f": "forces"}.items():
            own = engine.numpy.extract_atom(name, nelem=engine.extract_setting("nlocal"))
            by_tag[source] = comm.allgather(own.copy())
        tags = engine.numpy.extract_atom("id", nelem=engine.extract_setting("nlocal"))
        energies = engine.numpy.extract_compute("atoms", 1, 1)[: len(tags)]
        by_tag["energies"] = comm.allgather(energies.copy())
        order = np.argsort(np.concatenate(comm.allgather(tags.copy())))
        frame = {name: np.concatenate(rows)[order].tolist() for name, rows in by_tag.items()}
        frame["own"] = comm.allgather(len(tags))
        frames.append(frame | {"thermo": thermo})
    answers["frames"] = frames
    answers["programs"] = comm.allgather(evaluate_part._cache_size())
except Exception as error:
    answers["error"] = f"{type(error).__name__}: {error}"
if comm.rank == 0:
    with open(settings["out"], "w") as file:
        json.dump(answers, file)
