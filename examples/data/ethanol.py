"""Make the ethanol data set: GFN2-xTB Langevin trajectories, labelled with PBE/def2-SVP by PySCF.

    pip install 'mlip-jax[dft]'
    python examples/data/ethanol.py --out mlip/datasets
    python examples/data/ethanol.py --out mlip/datasets --add-dipoles  # to a set that has none

Writes `ethanol_train.xyz`, `ethanol_test_300K.xyz`, `ethanol_test_600K.xyz` and
`ethanol_isolated_atoms.xyz`. Each labelled frame is appended to `--work` as it is finished, so
that an interrupted run continues where it stopped. About 7 s a frame on one core.
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import ase.io
import numpy as np
import pyscf
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from pyscf import dft, gto
from pyscf.data.nist import BOHR, HARTREE2EV
from tblite.ase import TBLite

TEMPERATURES = (300, 600)  # K
TIMESTEP = 0.5  # fs
FRICTION = 0.02  # 1/fs: velocities forget within 50 fs
EQUILIBRATION = 4000  # steps, 2 ps
INTERVAL = 600  # steps between frames, 0.3 ps
XC, BASIS, GRID_LEVEL, CONVERGENCE = "PBE", "def2-svp", 3, 1e-9
UNPAIRED = {"H": 1, "C": 2, "O": 2}
PROVENANCE = (
    f"PySCF {pyscf.__version__}; {XC}/{BASIS}; density fitting (default auxiliary basis); "
    f"grid level {GRID_LEVEL}, grid response in forces; SCF converged to {CONVERGENCE:g} Hartree; "
    f"sampled by GFN2-xTB (tblite {version('tblite')}) Langevin dynamics, {TIMESTEP} fs, "
    f"friction {FRICTION}/fs, every {INTERVAL * TIMESTEP / 1000:g} ps"
)


def sample(temperature, n_frames, seed):
    """Frames of a Langevin trajectory of ethanol at `temperature` (K), 0.3 ps apart."""
    atoms = molecule("CH3CH2OH")
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=0.01)
    rng = np.random.default_rng([seed, temperature])
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    dynamics = Langevin(
        atoms,
        TIMESTEP * units.fs,
        temperature_K=temperature,
        friction=FRICTION / units.fs,
        rng=rng,
        fixcm=False,  # samples the exact distribution; the drift is taken out below
    )
    dynamics.run(EQUILIBRATION)
    frames, energies = [], []
    for step in range(n_frames):
        dynamics.run(INTERVAL)
        frame = Atoms(atoms.numbers, atoms.positions - atoms.get_center_of_mass())
        frame.info = {"config_type": f"{temperature}K", "sample": step, "provenance": PROVENANCE}
        frames.append(frame)
        energies.append(atoms.get_potential_energy())
    deviation = np.array(energies) - np.mean(energies)
    correlation = (deviation[1:] * deviation[:-1]).mean() / (deviation**2).mean()
    print(f"{temperature} K: {n_frames} frames, energy correlation of neighbours {correlation:.2f}")
    return frames


def converge(atoms, guess=None, spin=0):
    """Energy (eV) of one frame, its converged field, and its dipole moment (e·Å).

    Raises:
      RuntimeError: the self-consistent field did not converge.
    """
    mol = gto.M(
        atom=[(s, p) for s, p in zip(atoms.symbols, atoms.positions)],
        basis=BASIS,
        spin=spin,
        unit="Angstrom",
        verbose=0,
    )
    field = (dft.UKS if spin else dft.RKS)(mol).density_fit()
    field.xc, field.grids.level, field.conv_tol, field.max_cycle = XC, GRID_LEVEL, CONVERGENCE, 100
    energy = field.kernel(dm0=guess) * HARTREE2EV
    if not field.converged:  # open-shell atoms with degenerate p orbitals need second order
        field = field.newton()
        energy = field.kernel(dm0=guess) * HARTREE2EV
    if not field.converged:
        raise RuntimeError(f"SCF did not converge for {atoms.symbols}, info {atoms.info}")
    return energy, field, field.dip_moment(unit="AU", verbose=0) * BOHR


def label(atoms, guess=None, spin=0):
    """Energy, forces (eV/Å) and dipole of one frame, and its density matrix as the next guess."""
    energy, field, dipole = converge(atoms, guess, spin)
    gradient = field.nuc_grad_method()
    gradient.grid_response = True  # without it the forces do not sum to zero
    forces = -gradient.kernel() * HARTREE2EV / BOHR if len(atoms) > 1 else np.zeros((1, 3))
    labels = {"energy": energy, "forces": forces, "dipole": dipole}
    return labels, field.make_rdm1()


def add_dipoles(path, work):
    """Add dipoles to the labelled frames of a file, whose energies must come out as they stand."""
    frames = ase.io.read(path, ":")
    done = ase.io.read(work, ":") if work.exists() else []
    guess = None
    for number, frame in enumerate(frames[len(done) :], start=len(done)):
        energy, field, dipole = converge(frame, guess)
        stored = frame.get_potential_energy()
        assert abs(energy - stored) < 1e-5, f"frame {number}: {energy} is not {stored} eV"
        forces, guess = frame.get_forces(), field.make_rdm1()
        frame.calc = SinglePointCalculator(frame, energy=stored, forces=forces, dipole=dipole)
        ase.io.write(work, frame, append=True)
        done.append(frame)
        print(f"{path.name} {number + 1}/{len(frames)}: {energy - stored:.1e} eV", flush=True)
    ase.io.write(path, done)


def label_all(frames, work):
    """Label frames one after the other, appending each to `work`; those already there are kept."""
    done = ase.io.read(work, ":") if work.exists() else []
    guess = None
    for number, frame in enumerate(frames[len(done) :], start=len(done)):
        labels, guess = label(frame, guess)
        frame.calc = SinglePointCalculator(frame, **labels)
        ase.io.write(work, frame, append=True)
        done.append(frame)
        print(f"frame {number + 1}/{len(frames)}: {labels['energy']:.6f} eV", flush=True)
    return done


def split(frames, seed, n_test):
    """Train frames and, for each temperature, `n_test` test frames drawn without replacement."""
    rng = np.random.default_rng(seed)
    train, tests = [], {}
    for temperature in TEMPERATURES:
        group = [f for f in frames if f.info["config_type"] == f"{temperature}K"]
        order = rng.permutation(len(group))
        tests[temperature] = [group[i] for i in sorted(order[:n_test])]
        train += [group[i] for i in sorted(order[n_test:])]
    return train, tests


def isolated_atoms():
    frames = []
    for symbol, spin in UNPAIRED.items():
        atom = Atoms(symbol, info={"config_type": "IsolatedAtom", "provenance": PROVENANCE})
        labels, _ = label(atom, spin=spin)
        atom.calc = SinglePointCalculator(atom, **labels)
        frames.append(atom)
    return frames


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished files")
    parser.add_argument("--work", type=Path, default=Path("ethanol_labelled.xyz"))
    parser.add_argument("--frames", type=int, default=260, help="frames at each temperature")
    parser.add_argument("--test", type=int, default=60, help="test frames at each temperature")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add-dipoles", action="store_true", help="to the frames in --out")
    args = parser.parse_args()
    if args.add_dipoles:
        for path in sorted(args.out.glob("ethanol_t*.xyz")):
            add_dipoles(path, args.work.with_name(f"{args.work.stem}_{path.name}"))
        return
    atoms = isolated_atoms()
    per_temperature = [sample(t, args.frames, args.seed) for t in TEMPERATURES]
    # Alternate the temperatures, so that an early stop still leaves a balanced set.
    frames = [frame for pair in zip(*per_temperature) for frame in pair]
    labelled = label_all(frames, args.work)
    train, tests = split(labelled, args.seed, args.test)
    args.out.mkdir(parents=True, exist_ok=True)
    ase.io.write(args.out / "ethanol_isolated_atoms.xyz", atoms)
    ase.io.write(args.out / "ethanol_train.xyz", train)
    for temperature, frames in tests.items():
        ase.io.write(args.out / f"ethanol_test_{temperature}K.xyz", frames)


if __name__ == "__main__":
    main()
