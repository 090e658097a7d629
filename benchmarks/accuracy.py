"""Errors on held-out frames after a given time of training, beside published ones.

    python benchmarks/accuracy.py --set acac --minutes 20 --cores 0
    python benchmarks/accuracy.py --set 3bpa --size medium --minutes 60 --cores 0,1 --run runs/3bpa
    python benchmarks/accuracy.py --set silicon --minutes 10 --seeds 0,1,2
    python benchmarks/accuracy.py --set acac --size large --minutes 60 --stop-after 9 --run runs

Prints a table and writes a JSON row to `benchmarks/results/accuracy_SET.json` (with the size in the
name, unless it is small): test errors at the end and over time, settings, versions, machine, date.
`ethanol` and `silicon` ship with the package; the other sets are public ones beside the repository.
Weights are selected on frames split from the training file alone. With `--run` a run that was
stopped goes on with the time that is left; `--stop-after` ends each part of it after so many
minutes, with a row of the best weights so far. Several seeds are trained one after another; the row
then has the mean of their errors and the standard deviation.

Of `3bpa` every tenth frame of `train_300K` is held out as the test at 300 K; the tests at 600 and
1200 K are the frames of `train_mixedT` at those temperatures, which are not those of the
published figures. `mlearn` is tested on its own test files, `water` on the last of its four parts.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from mlip.runtime import Stop, use_all_cores
from mlip.screen import Screen

ROOT = Path(__file__).parents[1]
PUBLIC = ROOT.parent / "shared" / "data"
SHIPPED = ROOT / "mlip" / "datasets"
RESULTS = ROOT / "benchmarks" / "results"
KEYS = {"stress_key": "vasp_stress_kbar", "stress_unit": "-kbar"}  # of mlearn
SETS = {
    "acac": {
        "train": [PUBLIC / "acac" / "train_300K.xyz"],
        "e0": PUBLIC / "acac" / "isolated_atoms.xyz",
        "test": {"300 K": PUBLIC / "acac" / "test_MD_300K.xyz"},
        "level": "acetylacetone, PBE+D3/def2-SVP (BOTNet-datasets)",
    },
    "3bpa": {
        "train": [PUBLIC / "3bpa" / "train_300K.xyz"],
        "hold_out": ("300 K", 10),  # every tenth frame of it
        "e0": PUBLIC / "3bpa" / "iso_atoms.xyz",
        "test": {  # ordered by temperature
            "600 K": (PUBLIC / "3bpa" / "train_mixedT.xyz", slice(167, 333)),
            "1200 K": (PUBLIC / "3bpa" / "train_mixedT.xyz", slice(334, 500)),
        },
        "level": "3BPA, wB97X/6-31G(d) (BOTNet-datasets)",
    },
    "mlearn-si": {
        "train": [PUBLIC / "mlearn" / "Si" / "train.xyz"],
        "test": {"all": PUBLIC / "mlearn" / "Si" / "test.xyz"},
        "keys": KEYS | {"stress_order": "vasp"},
        "level": "silicon, PBE (mlearn)",
    },
    "mlearn-mo": {
        "train": [PUBLIC / "mlearn" / "Mo" / "train.xyz"],
        "test": {"all": PUBLIC / "mlearn" / "Mo" / "test.xyz"},
        "keys": KEYS | {"stress_order": "xx yy zz xy xz yz"},
        "level": "molybdenum, PBE (mlearn)",
    },
    "water": {
        "train": [PUBLIC / "water" / f"data_{part}.xyz" for part in range(3)],
        "test": {"all": PUBLIC / "water" / "data_3.xyz"},
        "level": "liquid water (example of DeePMD-kit)",
    },
    "ethanol": {
        "train": [SHIPPED / "ethanol_train.xyz"],
        "e0": SHIPPED / "ethanol_isolated_atoms.xyz",
        "test": {
            "300 K": SHIPPED / "ethanol_test_300K.xyz",
            "600 K": SHIPPED / "ethanol_test_600K.xyz",
        },
        "level": "ethanol, PBE/def2-SVP",
    },
    "silicon": {
        "train": [SHIPPED / "silicon_train.xyz"],
        "test": {"all": SHIPPED / "silicon_test.xyz"},
        "level": "silicon, PBE",
    },
}
SIZES = {
    "small": {"channels": 64},
    "medium": {"channels": 128, "hidden_l": 1},
    "large": {"channels": 128, "hidden_l": 2},
}
# RMSE, meV per molecule / meV/Å, trained on train_300K: MACE, Batatia et al. 2022
# (arXiv:2206.07697), tables 2 and 3, and the codes compared there.
PUBLISHED = {
    "acac": {
        "MACE L=2": {"300 K": (0.9, 5.1)},
        "NequIP L=3": {"300 K": (0.81, 5.90)},
        "BOTNet L=3": {"300 K": (0.89, 6.3)},
    },
    "3bpa": {
        "MACE L=2": {"300 K": (3.0, 8.8), "600 K": (9.7, 21.8), "1200 K": (29.8, 62.0)},
        "MACE L=1": {"300 K": (3.4, 10.3), "600 K": (9.9, 24.6), "1200 K": (31.7, 67.8)},
        "MACE L=0": {"300 K": (4.5, 14.6), "600 K": (13.7, 33.3), "1200 K": (37.1, 81.6)},
        "NequIP L=3": {"300 K": (3.3, 10.8), "600 K": (11.2, 26.4), "1200 K": (38.5, 76.2)},
        "BOTNet L=3": {"300 K": (3.1, 11.0), "600 K": (11.5, 26.7), "1200 K": (39.1, 81.1)},
        "Allegro L=3": {"300 K": (3.84, 12.98), "600 K": (12.07, 29.17), "1200 K": (42.57, 82.96)},
    },
}
COLUMNS = (
    "energy_rmse_mev_per_atom",
    "energy_rmse_mev",
    "forces_rmse_mev_per_A",
    "stress_rmse_mev_per_A3",
)


class PartEnded(Stop):
    """The time of a part of a training is over."""


class PartScreen(Screen):
    """Ends a training after so many minutes, once the epoch is validated; None for never."""

    def __init__(self, minutes):
        super().__init__()
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    def update(self, progress, fraction, row):
        super().update(progress, fraction, row)
        if self.end is not None and row is not None and time.monotonic() > self.end:
            raise PartEnded(signal.SIGTERM)


class Snapshots(threading.Thread):
    """Copies the best model of a run at every minute, named after the seconds it has taken."""

    def __init__(self, run):
        super().__init__(daemon=True)
        self.model, self.folder = run / "model.safetensors", run / "snapshots"
        rows = run / "metrics.jsonl"
        before = json.loads(rows.read_text().splitlines()[-1])["seconds"] if rows.exists() else 0
        self.begin, self.ended = time.monotonic() - before, threading.Event()

    def run(self):
        while not self.ended.wait(60):
            if self.model.exists():
                self.folder.mkdir(exist_ok=True)
                seconds = time.monotonic() - self.begin
                shutil.copy(self.model, self.folder / f"{seconds:.0f}.safetensors")

    def files(self):
        """{seconds: file}, in order, those of earlier parts of the run too."""
        return {int(f.stem): f for f in sorted(self.folder.glob("*"), key=lambda f: int(f.stem))}


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


def told(arguments):
    """Arguments without the folders of one machine."""
    places = [i for i, a in enumerate(arguments) if a in ("--peers", "--run", "--pythons")]
    kept = [a for i, a in enumerate(arguments) if i not in places and i - 1 not in places]
    return [Path(a).name if before == "--out" else a for before, a in zip(["", *kept], kept)]


def divide(chosen, folder):
    """The training file and the test frames of a set; files that are put together lie in `folder`.

    Frames of a test that stand in the training file too are left out.
    """
    import ase.io

    train = [atoms for path in chosen["train"] for atoms in ase.io.read(path, ":")]
    path, tests = chosen["train"][0], {}
    if "hold_out" in chosen:
        name, every = chosen["hold_out"]
        tests[name] = train[::every]
        train = [atoms for index, atoms in enumerate(train) if index % every]
    if len(chosen["train"]) > 1 or "hold_out" in chosen:
        path = Path(folder) / "train.xyz"
        ase.io.write(path, train)
    known = {atoms.positions.tobytes() for atoms in train}
    for name, source in chosen["test"].items():
        file, part = source if isinstance(source, tuple) else (source, slice(None))
        frames = ase.io.read(file, ":")[part]
        tests[name] = [atoms for atoms in frames if atoms.positions.tobytes() not in known]
    for name, frames in tests.items():
        ase.io.write(Path(folder) / f"test {name}.xyz", frames)
    return path, {name: Path(folder) / f"test {name}.xyz" for name in tests}


def test_errors(model, tests, keys):
    import mlip
    from mlip.training.evaluation import metrics, parity

    potential, errors = mlip.load(model), {}
    for name, path in tests.items():
        frames = mlip.read(path, keys)
        found = metrics(parity(frames, potential.predict(frames)))
        errors[name] = {"frames": len(frames)} | {key: found[key] for key in COLUMNS}
    return errors


def train_one(args, seed, run, data):
    """A row of one training."""
    import mlip

    path, tests = data
    keys = mlip.LabelKeys(**SETS[args.set].get("keys", {}))
    config = mlip.TrainConfig(
        train=str(path),
        valid="0.1",
        e0=str(SETS[args.set].get("e0", "auto")),
        out=str(run),
        max_minutes=args.minutes,
        seed=seed,
        keys=keys,
        network=mlip.NetworkConfig(**SIZES[args.size]),
    )
    snapshots = Snapshots(run)
    snapshots.start()
    with PartScreen(args.stop_after) as screen, contextlib.suppress(PartEnded):
        mlip.train(config, resume=any((run / "states").glob("*")), show=screen)
    potential = mlip.load(run / "model.safetensors")
    snapshots.ended.set()
    snapshots.join()
    return {
        "seed": seed,
        "parameters": potential.n_parameters,
        "frames_trained_on": potential.training["n_train"],
        "frames_validated_on": potential.training["n_valid"],
        "steps": potential.training["steps"],
        "epochs": potential.training["epochs"],
        "minutes_taken": potential.training["minutes"],
        "recipe": {part: asdict(getattr(config, part)) for part in ("network", "loss", "optimizer")}
        | {"batch_size": config.batch_size},
        "device": potential.training["device"],
        "test": test_errors(run / "model.safetensors", tests, keys),
        "over_time": [
            {"minutes": round(seconds / 60, 2), **test_errors(file, tests, keys)}
            for seconds, file in snapshots.files().items()
        ],
    }


def mean_and_spread(rows):
    """Errors of several seeds: their mean, and the standard deviation."""
    mean, spread = {}, {}
    for name, errors in rows[0]["test"].items():
        values = {key: [row["test"][name][key] for row in rows] for key in errors}
        known = {key: v for key, v in values.items() if v[0] is not None}
        mean[name] = dict.fromkeys(errors) | {key: statistics.mean(v) for key, v in known.items()}
        spread[name] = {key: statistics.stdev(v) for key, v in known.items() if key != "frames"}
    return mean, spread


def show(name, row):
    """Our errors and the published ones on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{row['level']}: RMSE, energy meV a structure / forces meV/Å")
    table.add_column("code")
    for test in row["test"]:
        table.add_column(test, justify="right")
    pairs = [(e["energy_rmse_mev"], e["forces_rmse_mev_per_A"]) for e in row["test"].values()]
    ours = f"ours {row['size']}, {row['parameters']} parameters, {row['minutes_taken']:.0f} min"
    table.add_row(ours, *(f"{energy:.2f} / {forces:.2f}" for energy, forces in pairs))
    for code, errors in PUBLISHED.get(name, {}).items():
        cells = [errors.get(test) for test in row["test"]]
        table.add_row(code, *("" if pair is None else f"{pair[0]} / {pair[1]}" for pair in cells))
    Console().print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--minutes", type=float, required=True, help="of each training")
    parser.add_argument(
        "--stop-after", type=float, help="minutes after which a part of the training ends"
    )
    parser.add_argument("--cores", default="0", help="cores to run on, such as 0 or 0,1")
    parser.add_argument("--seeds", default="0", help="one or several, such as 0,1,2")
    parser.add_argument("--run", type=Path, help="folder of the runs; a temporary one if not given")
    parser.add_argument("--out", type=Path, help="JSON file; under benchmarks/results if not given")
    args = parser.parse_args()
    chosen = SETS[args.set]
    if missing := [path for path in chosen["train"] if not path.exists()]:
        sys.exit(f"{missing[0]} is absent; the public sets lie beside the repository")
    # Before jax starts its threads.
    os.sched_setaffinity(0, {int(core) for core in args.cores.split(",")})
    use_all_cores()
    folder = args.run or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    data = divide(chosen, folder)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    rows = [train_one(args, seed, folder / f"seed{seed}", data) for seed in seeds]
    row = {
        "set": args.set,
        "level": chosen["level"],
        "size": args.size,
        "minutes": args.minutes,
        **rows[0],
        "published": PUBLISHED.get(args.set, {}),
        "command": " ".join(["python benchmarks/accuracy.py", *told(sys.argv[1:])]),
        **machine(),
    }
    if len(rows) > 1:
        row["test"], row["spread"] = mean_and_spread(rows)
        row["runs"] = [{key: one[key] for key in ("seed", "steps", "test")} for one in rows]
    name = args.set if args.size == "small" else f"{args.set}_{args.size}"
    out = args.out or RESULTS / f"accuracy_{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(row, indent=1) + "\n")
    show(args.set, row)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
