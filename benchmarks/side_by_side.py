"""Run this package and its peers side by side: workers, turns, tables, JSON rows.

A peer runs in its own environment (see `peers/install.sh`) as a worker process that waits for
commands; see `peers/protocol.py`. Measurements go round all workers in turns, so that whatever else
the machine does hits all alike.
"""

import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import ase.io
from accuracy import RESULTS, machine, told

PEERS = Path.home() / ".cache" / "mlip-peers"
WORKERS = Path(__file__).parent / "peers"
NETWORK = {
    "channels": 64,
    "hidden_l": 0,
    "l_max": 3,
    "correlation": 3,
    "layers": 2,
    "n_radial": 8,
    "radial_widths": [64, 64, 64],
    "cutoff_order": 5,
    "readout_width": 16,
}
SIZES = {
    "64x0e": NETWORK,
    "128x0e+128x1o": NETWORK | {"channels": 128, "hidden_l": 1},
}
CUTOFF = 5.0  # Å
TURN = 0.5  # seconds that a worker is given at a time


@dataclass(frozen=True)
class Code:
    """A code that takes part."""

    name: str
    worker: str  # script under peers/
    environment: str | None = None  # folder of its environment; None for this package
    extra: dict = field(default_factory=dict)  # what its task holds beside the common settings
    sized: bool = True  # has our hyperparameters; otherwise one size of its own
    python: str | None = None  # interpreter of this package, where not the one that runs this


OURS = "ours"
OWN = "its own"  # the size of codes that have but one
CODES = {
    code.name: code
    for code in (
        Code(OURS, "ours_worker.py", extra={"folded": True}),
        Code("ours, no blocks", "ours_worker.py", extra={"folded": True, "block": 0}),
        Code("ours unfolded", "ours_worker.py"),
        Code("ours unfolded, no blocks", "ours_worker.py", extra={"block": 0}),
        Code("mace-torch", "mace_worker.py", "mace"),
        Code("InstaDeep mlip", "instadeep_worker.py", "instadeep"),
        Code("nequix mp-1", "nequix_worker.py", "nequix", sized=False),
        Code("apax GMNN", "apax_worker.py", "apax", sized=False),
    )
}


def of_size(names, size):
    """Those of the codes that have this size."""
    return [name for name in names if CODES[name].sized == (size != OWN)]


class Missing(Exception):
    """A code takes no part in a measurement; the message says why."""


class Worker:
    """A code at work in a process of its own."""

    def __init__(self, code, task, options):
        self.code = code
        self.log = tempfile.TemporaryFile("w+")
        # Packages print on stdout as they like, so that answers need a pipe of their own.
        reading, writing = os.pipe()
        spawned = time.time()
        self.process = subprocess.Popen(
            [interpreter(code, options.peers), str(WORKERS / code.worker), str(writing)],
            pass_fds=[writing],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            text=True,
            env=environment(code, options),
            preexec_fn=lambda: pin(options),
        )
        os.close(writing)
        self.answers = os.fdopen(reading)
        place = {"threads": len(options.cores), "device": options.device}
        task = task | code.extra | place | {"spawned": spawned}
        try:
            self.ready = self.ask(json.dumps(task))
        except Missing:
            self.quit()
            raise

    def ask(self, line):
        """The answer to a command.

        Raises:
          Missing: the worker failed or died.
        """
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.answers.readline() or "null")
        except BrokenPipeError:
            answer = None
        if answer is None:
            status = self.process.wait()
            self.log.seek(0)
            last = (self.log.read().strip().splitlines() or ["nothing was printed"])[-1]
            raise Missing(f"the worker ended with status {status}: {last[:300]}")
        if "error" in answer:
            raise Missing(answer["error"])
        return answer

    def prepare(self, path):
        """Give it the frames of a file; returns what it says of them."""
        self.prepared = self.ask(f"prepare {path}")
        return self.prepared

    def run(self, count):
        """Seconds of some evaluations."""
        self.ran = self.ask(f"run {count}")
        return self.ran["seconds"]

    def quit(self):
        if self.process.poll() is None:
            self.process.stdin.write("quit\n")
            self.process.stdin.close()
            self.process.wait()
        self.answers.close()
        self.log.close()


def interpreter(code, peers):
    if code.environment is None:
        return code.python or sys.executable
    python = Path(peers) / code.environment / "bin" / "python"
    if not python.exists():
        raise Missing(f"no environment {python.parents[1]}; benchmarks/peers/install.sh makes it")
    return str(python)


def pin(options):
    os.sched_setaffinity(0, options.cores)


def environment(code, options):
    """Variables of a worker: as many threads as cores, and no GPU unless it is wanted."""
    kept = dict(os.environ)
    if code.environment is not None:
        kept.pop("PYTHONPATH", None)  # InstaDeep's package has our import name
    threads = str(len(options.cores))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
    kept |= dict.fromkeys(names, threads)
    if options.device == "cpu":
        kept |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    else:
        kept |= {"JAX_PLATFORMS": "cuda"}
    kept["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4.4 reads its own tables so
    if len(options.cores) == 1:
        flags = kept.get("XLA_FLAGS", "")
        kept["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    return kept | getattr(options, "variables", {})


def task(what, species, network=None, **more):
    """The part of a task that all codes share."""
    common = {
        "what": what,
        "network": network or NETWORK,
        "species": sorted({int(z) for z in species}),
        "cutoff": CUTOFF,
        "average_neighbors": 20.0,
        "dtype": "float32",
    }
    return common | more


def write_frames(frames, folder, name):
    path = Path(folder) / f"{name}.xyz"
    ase.io.write(path, frames, format="extxyz")
    return path


def start(names, description, options):
    """Workers of some codes, and why the others are missing."""
    workers, missing = {}, {}
    for name in names:
        try:
            workers[name] = Worker(CODES[name], description, options)
        except Missing as reason:
            missing[name] = str(reason)
    return workers, missing


def prepare(workers, path):
    """Prepare all workers; returns those that could, and why the others could not."""
    able, missing = {}, {}
    for name, worker in workers.items():
        try:
            worker.prepare(path)
            able[name] = worker
        except Missing as reason:
            missing[name] = str(reason)
    return able, missing


def take_turns(workers, repeats):
    """Seconds of single evaluations by worker, from `repeats` turns of each."""
    seconds = {name: [] for name in workers}
    for _ in range(repeats):
        for name, worker in workers.items():
            seconds[name] += worker.run(count_in_turn(worker))
    return seconds


def count_in_turn(worker):
    """Evaluations in a turn of a worker."""
    return math.ceil(TURN / max(worker.prepared["steady_seconds"], 0.01))


def quit_all(workers):
    for worker in workers.values():
        worker.quit()


def start_with(path, names, description, options):
    """Workers that have prepared the frames of one file, and why the others are missing."""
    workers, absent = start(names, description, options)
    able, missing = prepare(workers, path)
    quit_all({name: workers[name] for name in missing})
    return able, missing | absent


def compare(names, description, path, options, **facts):
    """Rows of some codes at one task and the frames of one file."""
    workers, missing = start_with(path, names, description, options)
    rows = measured_rows(workers, take_turns(workers, options.repeats), **facts)
    quit_all(workers)
    return rows + missing_rows(missing, **facts)


def measured_rows(workers, seconds, **facts):
    """A row for each worker: medians, quartiles and the ratio to ours."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    reference = medians.get(OURS, medians.get("ours unfolded"))
    rows = []
    for name, median in medians.items():
        ready, prepared = workers[name].ready, workers[name].prepared
        quartiles = statistics.quantiles(seconds[name], n=4) if len(seconds[name]) > 1 else []
        rows.append(
            {
                "model": name,
                **facts,
                "parameters": ready["parameters"],
                **prepared["facts"],
                "ms": 1000 * median,
                "ms_quartiles": [1000 * q for q in quartiles],
                "evaluations": len(seconds[name]),
                "ratio_to_ours": median / reference if reference else None,
                "compile_seconds": max(prepared["first_seconds"] - prepared["steady_seconds"], 0),
                "versions": ready["versions"],
                "device": ready["device"],
            }
        )
    return rows


def add_ratios(rows, size):
    """Ratios to ours at this size, for codes that have a size of their own."""
    ours = {
        row["structure"]: row["ms"]
        for row in rows
        if row["size"] == size
        and row["model"] in (OURS, "ours unfolded")
        and row.get("ratio_to_ours") == 1
    }
    for row in rows:
        if row["size"] == OWN and "ms" in row and row["structure"] in ours:
            row["ratio_to_ours"] = row["ms"] / ours[row["structure"]]


def missing_rows(missing, **facts):
    return [{"model": name, **facts, "missing": reason} for name, reason in missing.items()]


def add_options(parser, repeats=5, devices=("cpu",)):
    """Options that all of these scripts have; `devices` are those that a script can measure."""
    parser.add_argument("--peers", type=Path, default=PEERS, help="folder of peers/install.sh")
    parser.add_argument(
        "--cores", type=core_set, default={0}, help="cores to run on, such as 0 or 0,1"
    )
    parser.add_argument("--device", choices=devices, default="cpu")
    parser.add_argument("--repeats", type=int, default=repeats, help="turns of each worker")
    parser.add_argument("--out", type=Path, help="JSON file; under benchmarks/results if not given")


def core_set(text):
    return {int(core) for core in text.split(",")}


def names_of(text):
    return text.split(",")


def show(rows, columns):
    """Print rows as a table.

    Args:
      columns: heading → (key, format).
    """
    table = [list(columns)]
    for row in rows:
        cells = []
        for key, form in columns.values():
            value = row.get(key)
            cells.append("" if value is None else format(value, form))
        if "missing" in row:
            cells = [cell or "–" for cell in cells]
            cells.append(f"missing: {row['missing']}")
        table.append(cells)
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    right = [form != "" for _, form in columns.values()]
    for cells in table:
        line = [
            cell.rjust(width) if aligned else cell.ljust(width)
            for cell, width, aligned in zip(cells, widths, right)
        ]
        print("  ".join([*line, *cells[len(columns) :]]).rstrip())


def write(name, options, rows, **more):
    """Write the JSON row of a script with all it depends on."""
    row = {
        "rows": rows,
        **more,
        "command": "python " + shlex.join([f"benchmarks/{name}.py", *told(sys.argv[1:])]),
        **machine(),
        "cores": sorted(options.cores),
    }
    out = options.out or RESULTS / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(row, indent=1) + "\n")
    print(f"wrote {out}")
