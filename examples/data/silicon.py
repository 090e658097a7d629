"""Make the silicon data set with stresses: PBE by Quantum ESPRESSO.

    apt-get install quantum-espresso quantum-espresso-data
    python examples/data/silicon.py --out mlip/datasets

Writes `silicon_train.xyz` and `silicon_test.xyz`. Each labelled frame is appended to `--work` as it
is finished, so that an interrupted run continues where it stopped. About 10 s a frame on one core.

Every cell is sampled at the same physical k-points: a 3 x 3 x 3 Monkhorst-Pack grid of the cubic
cell, and for the primitive cell the same points folded into its larger Brillouin zone. With a grid
chosen per cell instead, the perfect crystal's energy would differ by several meV an atom between
the two cells, and no potential can fit such a set.
"""

import argparse
import itertools
import re
import subprocess
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.espresso import Espresso, EspressoProfile
from ase.calculators.singlepoint import SinglePointCalculator

LATTICE_CONSTANT = 5.47  # Å, PBE
PSEUDOPOTENTIAL = "Si.pbe-rrkj.UPF"
CUTOFF, SMEARING, CONVERGENCE = 30, 0.005, 1e-9  # Ry
GROUPS = {"rattled": 48, "strained": 36, "sheared": 26, "primitive": 30, "vacancy": 25}


def random_frames(seed):
    """Unlabelled frames of all groups, in an order that interleaves them."""
    rng = np.random.default_rng(seed)
    make = {
        "rattled": lambda: deform(cubic(), np.diag([rng.uniform(-0.03, 0.03)] * 3), rng, 0.16),
        "strained": lambda: deform(cubic(), symmetric(rng, 0.06, 0.02), rng, 0.05),
        "sheared": lambda: deform(cubic(), symmetric(rng, 0.02, 0.07), rng, 0.05),
        "primitive": lambda: deform(primitive(), symmetric(rng, 0.07, 0.04), rng, 0.12),
        "vacancy": lambda: deform(vacancy(rng), symmetric(rng, 0.03, 0.01), rng, 0.12),
    }
    frames = []
    for group, count in GROUPS.items():
        for number in range(count):
            frame = make[group]()
            frame.info = {"config_type": group, "sample": number}
            frames.append(((number + 0.5) / count, frame))
    return [frame for _, frame in sorted(frames, key=lambda pair: pair[0])]


def cubic():
    return bulk("Si", a=LATTICE_CONSTANT, cubic=True)


def primitive():
    return bulk("Si", a=LATTICE_CONSTANT)


def vacancy(rng):
    atoms = cubic()
    del atoms[rng.integers(len(atoms))]
    return atoms


def symmetric(rng, diagonal, shear):
    """A random symmetric strain with entries up to the two bounds."""
    strain = rng.uniform(-shear, shear, (3, 3))
    strain = (strain + strain.T) / 2
    strain[np.diag_indices(3)] = rng.uniform(-diagonal, diagonal, 3)
    return strain


def deform(atoms, strain, rng, largest_rattle):
    """Strain the cell with its atoms, then displace them by a random amplitude (Å)."""
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    amplitude = rng.uniform(0.01, largest_rattle)
    atoms.positions += rng.normal(scale=amplitude, size=atoms.positions.shape)
    return atoms


def folded_k_points():
    """The cubic cell's shifted 3 x 3 x 3 grid in the primitive cell's basis, [56, 4] with weights.

    k = (n, m, l)/6 with odd n, m, l in the cubic reciprocal basis is ((m + l), (n + l), (n + m))/12
    in the primitive one; k and -k count once.
    """
    points = set()
    for n, m, k in itertools.product(range(-11, 12, 2), repeat=3):
        point = ((m + k) // 2 % 6, (n + k) // 2 % 6, (n + m) // 2 % 6)
        opposite = tuple(-np.array(point) % 6)
        points.add(min(point, tuple(int(x) for x in opposite)))
    weight = {p: 1 if tuple(-np.array(p) % 6) == p else 2 for p in points}
    rows = [[*(np.array(p) / 6), weight[p]] for p in sorted(points)]
    assert sum(row[3] for row in rows) == 4 * 27
    return np.array(rows)


def calculator(profile, n_atoms, directory):
    is_primitive = n_atoms == 2
    return Espresso(
        profile=profile,
        directory=directory,
        pseudopotentials={"Si": PSEUDOPOTENTIAL},
        kpts=folded_k_points() if is_primitive else (3, 3, 3),
        koffset=(0, 0, 0) if is_primitive else (1, 1, 1),
        input_data={
            "control": {"tprnfor": True, "tstress": True, "disk_io": "none"},
            "system": {
                "ecutwfc": CUTOFF,
                "occupations": "smearing",
                "smearing": "gaussian",
                "degauss": SMEARING,
                "nosym": True,
            },
            "electrons": {"conv_thr": CONVERGENCE},
        },
    )


def label_all(frames, work, profile, provenance):
    """Label frames one after the other, appending each to `work`; those already there are kept."""
    done = ase.io.read(work, ":") if work.exists() else []
    for number, frame in enumerate(frames[len(done) :], start=len(done)):
        # pw.x exits with an error, raised by ASE, where the field does not converge.
        frame.calc = calculator(profile, len(frame), work.with_suffix(".pw"))
        energy, forces = frame.get_potential_energy(), frame.get_forces()
        stress = frame.get_stress(voigt=True)
        labelled = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
        labelled.info = frame.info | {"provenance": provenance}
        labelled.calc = SinglePointCalculator(labelled, energy=energy, forces=forces, stress=stress)
        ase.io.write(work, labelled, append=True)
        done.append(labelled)
        print(f"frame {number + 1}/{len(frames)}: {energy / len(frame):.5f} eV/atom", flush=True)
    return done


def pw_version(command):
    header = subprocess.run([command], input="", capture_output=True, text=True).stdout
    return re.search(r"PWSCF v\.(\S+)", header).group(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished files")
    parser.add_argument("--work", type=Path, default=Path("silicon_labelled.xyz"))
    parser.add_argument("--command", default="pw.x")
    parser.add_argument("--pseudopotentials", type=Path, default="/usr/share/espresso/pseudo")
    parser.add_argument("--test-fraction", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    provenance = (
        f"Quantum ESPRESSO {pw_version(args.command)}; PBE; {PSEUDOPOTENTIAL}; {CUTOFF} Ry; "
        f"3x3x3 shifted k-points of the cubic cell; Gaussian smearing {SMEARING} Ry; "
        f"SCF converged to {CONVERGENCE:g} Ry"
    )
    profile = EspressoProfile(command=args.command, pseudo_dir=args.pseudopotentials)
    frames = label_all(random_frames(args.seed), args.work, profile, provenance)
    rng = np.random.default_rng(args.seed)
    train, test = [], []
    for group in GROUPS:
        members = [f for f in frames if f.info["config_type"] == group]
        order = rng.permutation(len(members))
        n_test = round(args.test_fraction * len(members))
        test += [members[i] for i in sorted(order[:n_test])]
        train += [members[i] for i in sorted(order[n_test:])]
    args.out.mkdir(parents=True, exist_ok=True)
    ase.io.write(args.out / "silicon_train.xyz", train)
    ase.io.write(args.out / "silicon_test.xyz", test)


if __name__ == "__main__":
    main()
