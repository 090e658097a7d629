"""Error against wall time of training, ours and peers, each by its own trainer.

    python benchmarks/time_to_accuracy.py --minutes 20 --cores 0
    python benchmarks/time_to_accuracy.py --minutes 20 --cores 0,1

Acetylacetone, trained on `train_300K` of the public set beside the repository. Network, batch size,
running average and weight of the forces are equal; each code keeps its own schedule and
initialisation. `ours` learns with its defaults, `ours with Adam` with the optimizer and the first
learning rate of the others. The error is that of the forces on every sixth frame of
`test_MD_300K`, after every epoch, with the averaged weights; nothing is selected by it but
mace-torch's learning rate, which falls where these errors no longer do. Time counts from the start
of the process, imports and compilation included; programs compiled before are not used. With
several cores so many codes are trained at a time, each on one. Prints a table and writes a JSON row
and a figure to `benchmarks/results`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import ase.io
import side_by_side as bench
from accuracy import SETS

LEARNING_RATE, EMA, FORCES_WEIGHT = 0.01, 0.995, 100.0
EVERY = 6  # frame of the test is looked at
ENDLESS = 1_000_000
AT = (1, 2, 5, 10, 15, 20)  # minutes of the table


def ours(task, folder, peers, optimizer=()):
    network, e0 = task["network"], task["e0"]
    config = {
        "train": task["train"],
        "valid": task["valid"],
        "e0": ", ".join(f"{ase.data.chemical_symbols[z]}={energy}" for z, energy in e0.items()),
        "out": str(folder / "run"),
        "batch_size": task["batch_size"],
        "max_minutes": task["minutes"],
        "seed": task["seed"],
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.items()]
    lines += ["[network]", *(f"{key} = {json.dumps(value)}" for key, value in network.items())]
    lines += ["[loss]", f"forces_weight = {FORCES_WEIGHT}"]
    lines += ["[optimizer]", f"ema = {EMA}", *optimizer]
    (folder / "config.toml").write_text("\n".join(lines))
    command = [sys.executable, "-m", "mlip.cli", "train", str(folder / "config.toml")]
    return command, "run/metrics.jsonl", lambda row: row["valid_forces_rmse_mev_per_A"]


def ours_with_adam(task, folder, peers):
    return ours(task, folder, peers, ['optimizer = "adam"', f"learning_rate = {LEARNING_RATE}"])


def mace(task, folder, peers):
    network = task["network"]
    for name in ("train", "valid"):
        frames = ase.io.read(task[name], ":")
        for atoms in frames:
            atoms.info["REF_energy"] = atoms.get_potential_energy()
            atoms.arrays["REF_forces"] = atoms.get_forces()
            atoms.calc = None
        ase.io.write(folder / f"{name}.xyz", frames)
    settings = {
        "name": "mace",
        "train_file": folder / "train.xyz",
        "valid_file": folder / "valid.xyz",
        "E0s": str(task["e0"]),
        "model": "ScaleShiftMACE",
        "hidden_irreps": f"{network['channels']}x0e",
        "r_max": network["cutoff"],
        "max_ell": network["l_max"],
        "correlation": network["correlation"],
        "num_interactions": network["layers"],
        "num_radial_basis": network["n_radial"],
        "radial_MLP": str(list(network["radial_widths"])),
        "batch_size": task["batch_size"],
        "lr": LEARNING_RATE,
        "ema_decay": EMA,
        "forces_weight": FORCES_WEIGHT,
        "energy_weight": 1.0,
        "max_num_epochs": ENDLESS,
        "eval_interval": 1,
        "seed": task["seed"],
        "work_dir": folder,
        "device": "cpu",
        "default_dtype": "float32",
    }
    flags = [f"--{key}={value}" for key, value in settings.items()]
    command = [str(peers / "mace" / "bin" / "mace_run_train"), *flags, "--amsgrad", "--ema"]
    name = f"results/mace_run-{task['seed']}_train.txt"
    return command, name, lambda row: 1e3 * row["rmse_f"] if row.get("mode") == "eval" else None


def instadeep(task, folder, peers):
    script = Path(__file__).parent / "peers" / "instadeep_trainer.py"
    known = {"learning_rate": LEARNING_RATE, "ema": EMA, "forces_weight": FORCES_WEIGHT}
    command = [str(peers / "instadeep" / "bin" / "python"), str(script), json.dumps(task | known)]
    return command, "out.txt", lambda row: 1e3 * row["rmse"]


CODES = {
    "ours": ours,
    "mace-torch": mace,
    "ours with Adam": ours_with_adam,
    "InstaDeep mlip": instadeep,
}


def follow(command, path, error_of, folder, minutes, core, own):
    """Errors over time, [[minutes, meV/Å]], of a process that writes lines of JSON to a file."""
    found, seen, begin = [], 0, time.monotonic()
    with open(folder / "out.txt", "w") as out, open(folder / "err.txt", "w") as err:
        words = ["taskset", "-c", str(core), *command]
        # Of two packages named mlip each must find its own.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or own}
        environment["MLIP_CACHE"] = "off"
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        process = subprocess.Popen(words, stdout=out, stderr=err, cwd=folder, env=environment)
        try:
            while time.monotonic() - begin < 60 * minutes + 5 and process.poll() is None:
                time.sleep(0.2)
                text = (folder / path).read_text() if (folder / path).exists() else ""
                lines = text[: text.rfind("\n") + 1].splitlines()
                for line in lines[seen:]:
                    error = error_of(json.loads(line)) if line.startswith("{") else None
                    if error is not None:
                        found.append([(time.monotonic() - begin) / 60, error])
                seen = len(lines)
            failed = process.poll()  # None while it runs, 0 if it came to its end
        finally:
            process.terminate()
            process.wait()
    if failed or not found:
        raise RuntimeError(f"it failed: {(folder / 'err.txt').read_text()[-2000:]}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="of each training")
    parser.add_argument("--models", type=bench.names_of, default=list(CODES))
    parser.add_argument("--batch-size", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    bench.add_options(parser)
    options = parser.parse_args()
    chosen = SETS["acac"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        test = ase.io.read(chosen["test"]["300 K"], f"::{EVERY}")
        ase.io.write(folder / "valid.xyz", test)
        singles = ase.io.read(chosen["e0"], ":")
        task = {
            "train": str(chosen["train"][0]),
            "valid": str(folder / "valid.xyz"),
            "network": bench.NETWORK | {"cutoff": bench.CUTOFF},
            "e0": {int(a.numbers[0]): float(a.get_potential_energy()) for a in singles},
            "batch_size": options.batch_size,
            "minutes": options.minutes,
            "seed": options.seed,
        }
        cores = Queue()
        for core in sorted(options.cores):
            cores.put(core)
        rows, printing = {}, threading.Lock()

        def train(name):
            place, core = folder / name.replace(" ", "_"), cores.get()
            place.mkdir()
            try:
                command, path, error_of = CODES[name](task, place, options.peers)
                rows[name] = follow(
                    command, path, error_of, place, options.minutes, core, name.startswith("ours")
                )
            except (OSError, RuntimeError) as reason:
                with printing:
                    print(f"{name} is missing: {reason}")
            finally:
                cores.put(core)

        with ThreadPoolExecutor(len(options.cores)) as pool:
            list(pool.map(train, options.models))
    curves = [
        {"model": name, "epochs": len(found), KEY: found, "versions": versions(name, options.peers)}
        for name, found in rows.items()
    ]
    for row in curves:
        for at in AT:
            reached = [error for minutes, error in row[KEY] if minutes <= at]
            row[f"after {at} min"] = reached[-1] if reached and at <= options.minutes else None
    columns = {"model": ("model", ""), "epochs": ("epochs", "d")}
    columns |= {f"{at} min": (f"after {at} min", ".1f") for at in AT if at <= options.minutes}
    bench.show(curves, columns)
    draw(rows, bench.RESULTS / "time_to_accuracy.png")
    bench.write("time_to_accuracy", options, curves)


KEY = "minutes_and_forces_rmse_mev_per_A"
PACKAGES = {
    "mace-torch": ("mace", ("mace-torch", "torch")),
    "InstaDeep mlip": ("instadeep", ("mlip", "jax")),
}


def versions(name, peers):
    """Versions of a peer's packages, by name; those of ours are in the row."""
    if name not in PACKAGES:
        return {}
    environment, packages = PACKAGES[name]
    program = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    python = str(peers / environment / "bin" / "python")
    found = subprocess.run([python, "-c", program, *packages], capture_output=True, text=True)
    return dict(zip(packages, found.stdout.split()))


def draw(rows, path):
    from mlip.report import figures

    panel = {
        "x": "minutes of training on one core",
        "y": "forces RMSE on test frames (meV/Å)",
        "curves": {name: tuple(zip(*found)) for name, found in rows.items()},
        "log": "xy",
    }
    (image,) = figures.lines([panel])
    figures.to_png(image, path)


if __name__ == "__main__":
    main()
