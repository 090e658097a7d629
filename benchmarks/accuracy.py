"""Errors on held-out frames after a given time of training with the defaults.

    python benchmarks/accuracy.py --set acac --minutes 20 --cores 0
    python benchmarks/accuracy.py --set ethanol --minutes 10 --cores 0
    python benchmarks/accuracy.py --set silicon --minutes 10 --cores 0

Prints a table and writes a JSON row to `benchmarks/results/accuracy_SET.json`: test errors at the
end and over time, settings, versions, machine, date. `acac` reads the public set beside the
repository; the other two ship with the package. Weights are selected on frames split from the
training file alone.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PUBLIC = ROOT.parent / "shared" / "data"
SHIPPED = ROOT / "mlip" / "datasets"
SETS = {
    "acac": {
        "train": PUBLIC / "acac" / "train_300K.xyz",
        "e0": PUBLIC / "acac" / "isolated_atoms.xyz",
        "test": {"300 K": PUBLIC / "acac" / "test_MD_300K.xyz"},
        "level": "acetylacetone, PBE+D3/def2-SVP (BOTNet-datasets)",
    },
    "ethanol": {
        "train": SHIPPED / "ethanol_train.xyz",
        "e0": SHIPPED / "ethanol_isolated_atoms.xyz",
        "test": {
            "300 K": SHIPPED / "ethanol_test_300K.xyz",
            "600 K": SHIPPED / "ethanol_test_600K.xyz",
        },
        "level": "ethanol, PBE/def2-SVP",
    },
    "silicon": {
        "train": SHIPPED / "silicon_train.xyz",
        "e0": "auto",
        "test": {"all": SHIPPED / "silicon_test.xyz"},
        "level": "silicon, PBE",
    },
}
COLUMNS = (
    "energy_rmse_mev_per_atom",
    "energy_rmse_mev",
    "forces_rmse_mev_per_A",
    "stress_rmse_mev_per_A3",
)


class Snapshots(threading.Thread):
    """Copies the best model of a run at every minute."""

    def __init__(self, model, folder):
        super().__init__(daemon=True)
        self.model, self.folder = Path(model), Path(folder)
        self.start_time, self.files, self.ended = time.monotonic(), {}, threading.Event()

    def run(self):
        while not self.ended.wait(60):
            seconds = time.monotonic() - self.start_time
            if self.model.exists():
                copy = self.folder / f"{seconds:.0f}.safetensors"
                shutil.copy(self.model, copy)
                self.files[seconds] = copy


def machine():
    """The processor's name, and the versions a result depends on."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line]
    packages = ("mlip-jax", "jax", "jaxlib", "numpy", "flax", "optax")
    return {
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": sorted(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "date": datetime.date.today().isoformat(),
    }


def test_errors(model, tests):
    import mlip
    from mlip.training.evaluation import metrics, parity

    potential, errors = mlip.load(model), {}
    for name, path in tests.items():
        frames = mlip.read(path)
        found = metrics(parity(frames, potential.predict(frames)))
        errors[name] = {key: found[key] for key in COLUMNS}
    return errors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--cores", default="0", help="cores to run on, such as 0 or 0,1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="folder of the run; a temporary one if not given")
    parser.add_argument("--out", type=Path, help="JSON file; under benchmarks/results if not given")
    args = parser.parse_args()
    chosen = SETS[args.set]
    if not chosen["train"].exists():
        sys.exit(f"{chosen['train']} is absent; the public sets lie beside the repository")
    # Before jax starts its threads.
    os.sched_setaffinity(0, {int(core) for core in args.cores.split(",")})
    import mlip
    from mlip.report import Screen

    run = args.run or Path(tempfile.mkdtemp()) / "run"
    config = mlip.TrainConfig(
        train=str(chosen["train"]),
        valid="0.1",
        e0=str(chosen["e0"]),
        out=str(run),
        max_minutes=args.minutes,
        seed=args.seed,
    )
    snapshots = Snapshots(run / "model.safetensors", Path(tempfile.mkdtemp()))
    snapshots.start()
    with Screen() as screen:
        potential = mlip.train(config, show=screen)
    snapshots.ended.set()
    snapshots.join()
    row = {
        "set": args.set,
        "level": chosen["level"],
        "minutes": args.minutes,
        "seed": args.seed,
        "parameters": potential.n_parameters,
        "frames_trained_on": potential.training["n_train"],
        "frames_validated_on": potential.training["n_valid"],
        "steps": potential.training["steps"],
        "epochs": potential.training["epochs"],
        "test": test_errors(run / "model.safetensors", chosen["test"]),
        "over_time": [
            {"minutes": round(seconds / 60, 2), **test_errors(file, chosen["test"])}
            for seconds, file in sorted(snapshots.files.items())
        ],
        "command": "python " + " ".join(["benchmarks/accuracy.py", *sys.argv[1:]]),
        **machine(),
    }
    out = args.out or ROOT / "benchmarks" / "results" / f"accuracy_{args.set}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(row, indent=1) + "\n")
    for name, errors in row["test"].items():
        print(name, {key: None if v is None else round(v, 3) for key, v in errors.items()})
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
