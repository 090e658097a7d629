"""The whole job in a few minutes: train on ethanol, measure, simulate, say what comes next."""

import json
from importlib import resources
from pathlib import Path

import ase.io
import numpy as np
from ase import units
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from mlip.data.dataset import read
from mlip.data.structure import to_ase
from mlip.engines.ase import Calculator
from mlip.files import atomic_write
from mlip.model.mace.model import NetworkConfig
from mlip.report.figures import write_parity
from mlip.report.fit import report_training
from mlip.screen import (
    Screen,
    metrics_table,
    print_to_screen,
)
from mlip.training.evaluation import metrics, parity
from mlip.training.loop import train
from mlip.training.setup import TrainConfig
from mlip.units import MEV

NETWORK = NetworkConfig(channels=32)
TEMPERATURE = 300.0  # K
TIMESTEP = 0.5  # fs
STEPS = 2000
FRAMES_EVERY = 20


def data_file(name):
    """Path of a data set that ships with the package, such as ethanol_train.xyz."""
    return Path(str(resources.files("mlip") / "datasets" / name))


def run_quickstart(out, minutes):
    """Fill the folder `out` with a model of ethanol, its errors, plots and a short trajectory.

    Raises:
      FileExistsError: `out` holds a run already.
    """
    if (out / "config.toml").exists():
        raise FileExistsError(f"{out} holds a quickstart already; remove it or give another --out")
    screen = Screen()
    screen.line(
        f"Training a small network on DFT frames of ethanol (PBE/def2-SVP) for {minutes:g} minutes."
    )
    config = TrainConfig(
        train=str(data_file("ethanol_train.xyz")),
        e0=str(data_file("ethanol_isolated_atoms.xyz")),
        out=str(out),
        max_minutes=minutes,
        network=NETWORK,
    )
    with screen:
        potential = train(config, show=screen)
    report_training(out)
    results = {}
    for temperature in (300, 600):
        structures = read(data_file(f"ethanol_test_{temperature}K.xyz"))
        found = parity(structures, potential.predict(structures))
        results[f"test_{temperature}K"] = metrics(found)
        write_parity(found, out / f"test_{temperature}K")
        title = f"{len(structures)} held-out frames at {temperature} K"
        print_to_screen(metrics_table(results[f"test_{temperature}K"], title))
    screen.line(f"Running {STEPS * TIMESTEP / 1000:g} ps of NVE dynamics at {TEMPERATURE:g} K.")
    results["nve"] = run_nve(potential, out / "nve.xyz")
    screen.line(
        f"Energy drift {results['nve']['drift_mev_per_atom_per_ps']:.3f} meV/atom/ps, fluctuation "
        f"{results['nve']['fluctuation_mev_per_atom']:.3f} meV/atom."
    )
    with atomic_write(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    screen.line(f"""
In {out}: model.safetensors, report.html, metrics.json, test_*/parity_*.png, nve.xyz.
Next:
  mlip info {out}/model.safetensors
  mlip train --train your_frames.xyz --valid 0.1 --out run
  mlip evaluate run/model.safetensors your_test_frames.xyz --plots run/plots
and in Python, with ASE:
  atoms.calc = mlip.Calculator("run/model.safetensors")""")


def run_nve(potential, path):
    """A short trajectory at constant energy, written to `path`.

    Returns:
      drift (meV/atom/ps, by linear regression), fluctuation about it (meV/atom) and temperature.
    """
    atoms = to_ase(read(data_file("ethanol_test_300K.xyz"))[0])
    rng = np.random.default_rng(0)
    thermalize_momenta(atoms, temperature_K=TEMPERATURE, rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    atoms.calc = Calculator(potential)
    dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs)
    energies, temperatures, frames = [], [], []

    def record():
        energies.append(atoms.get_total_energy())
        temperatures.append(atoms.get_temperature())
        if (len(energies) - 1) % FRAMES_EVERY == 0:
            frames.append(atoms.copy())

    dynamics.attach(record)
    dynamics.run(STEPS)
    ase.io.write(path, frames)
    times = np.arange(len(energies)) * TIMESTEP / 1000
    slope, offset = np.polyfit(times, energies, 1)
    residual = np.array(energies) - (slope * times + offset)
    return {
        "picoseconds": STEPS * TIMESTEP / 1000,
        "drift_mev_per_atom_per_ps": float(MEV * slope / len(atoms)),
        "fluctuation_mev_per_atom": float(MEV * residual.std() / len(atoms)),
        "mean_temperature_K": float(np.mean(temperatures)),
    }
