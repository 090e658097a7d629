"""What each choice of the recipe is worth: errors of variants trained for equally many epochs.

    python benchmarks/ablations.py --set acac --epochs 60 --cores 0
    python benchmarks/ablations.py --set silicon --epochs 200 --variants recipe,SOAP --seeds 0,1,2

Every variant differs from the recipe in what its name says: the small size of `accuracy.py`, with a
radial network of three hidden layers as in MACE, which was the default until a smaller one was seen
to be better. It is trained in a process of its own, on one core; epochs are counted rather than
minutes, so that errors do not depend on what else the machine does, and the processor's time for an
epoch stands beside them. Weights are selected on frames split from the training file. Variants that
the package does not offer take the place of its functions here. Rows are added to
`benchmarks/results/ablations.json`, which keeps what is there already: a stopped run goes on.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from accuracy import RESULTS, SETS, SIZES, divide, machine, test_errors

from mlip.files import atomic_write
from mlip.training.loop import Silent

ROWS = RESULTS / "ablations.json"


def by_rank(parameters):
    """Which parameters are matrices, of two rows and columns at least."""
    import jax

    return jax.tree.map(
        lambda p: "matrix" if p.ndim == 2 and min(p.shape) > 1 else "other", parameters
    )


def soap(config):
    """SOAP for matrices, Adam for the rest. Source: Vyas et al. 2024, arXiv:2409.11321."""
    import optax

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.partition({"matrix": scale_by_soap(), "other": optax.scale_by_amsgrad()}, by_rank),
    )


def scale_by_soap(b1=0.95, b2=0.99, every=10, eps=1e-8):
    """Adam in the slowly turning eigenbasis of Shampoo's two factors."""
    import jax
    import jax.numpy as jnp
    import optax

    def start(p):
        rows, columns = (jnp.eye(n, dtype=p.dtype) for n in p.shape)
        moments = {name: jnp.zeros_like(p) for name in "mv"}
        return {"L": 0 * rows, "R": 0 * columns, "U": rows, "V": columns} | moments

    def init(parameters):
        return jnp.zeros([], jnp.int32), [start(p) for p in jax.tree.leaves(parameters)]

    def step(gradient, s, count):
        left = b2 * s["L"] + (1 - b2) * gradient @ gradient.T
        right = b2 * s["R"] + (1 - b2) * gradient.T @ gradient
        u, v = jax.lax.cond(
            count % every == 0,
            lambda: (jnp.linalg.qr(left @ s["U"])[0], jnp.linalg.qr(right @ s["V"])[0]),
            lambda: (s["U"], s["V"]),
        )
        m = b1 * s["m"] + (1 - b1) * gradient
        square = b2 * s["v"] + (1 - b2) * (u.T @ gradient @ v) ** 2
        turned = (u.T @ m @ v) / (1 - b1 ** (count + 1))
        scaled = turned / (jnp.sqrt(square / (1 - b2 ** (count + 1))) + eps)
        new = {"L": left, "R": right, "U": u, "V": v, "m": m, "v": square}
        return u @ scaled @ v.T, new

    def update(gradients, state, parameters=None):
        count, states = state
        leaves, tree = jax.tree.flatten(gradients)
        pairs = [step(g, s, count) for g, s in zip(leaves, states)]
        return tree.unflatten([p[0] for p in pairs]), (count + 1, [p[1] for p in pairs])

    return optax.GradientTransformation(init, update)


def schedule_free(config):
    """Source: Defazio et al. 2024, arXiv:2405.15682, as in optax. The rate stays what it is."""
    import jax
    import jax.numpy as jnp
    import optax

    rate = optax.warmup_constant_schedule(0.0, config.highest_rate, config.warmup_steps)
    inner = optax.contrib.schedule_free(optax.adam(rate, b1=0.0), rate, b1=0.9)

    def update(gradients, state, parameters):
        updates, state = inner.update(gradients, state, parameters)
        moved = optax.apply_updates(parameters, updates)
        return (moved, optax.contrib.schedule_free_eval_params(state, moved)), state

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.GradientTransformation(lambda p: jax.tree.map(jnp.copy, inner.init(p)), update),
    )


def small_readouts(network, seed):
    """A start from energies ten times as small."""
    from mlip.model.mace.network import initialize

    parameters = initialize(network, seed)
    return {k: 0.1 * v if k.startswith("readout") else v for k, v in parameters.items()}


def normalized_radial_network(weights, radial):
    """Layer normalisation in the radial network (its results end by the cutoff function)."""
    import jax
    import jax.numpy as jnp

    from mlip.model.mace.layer import SILU_GAIN, mix_channels

    hidden = radial.reshape(-1, radial.shape[-1])
    n_steps = sum(key[0] == "radial" for key in weights)
    for step in range(n_steps):
        hidden = mix_channels(hidden, weights["radial", step])
        if step < n_steps - 1:
            hidden -= hidden.mean(axis=-1, keepdims=True)
            hidden /= jnp.sqrt((hidden**2).mean(axis=-1, keepdims=True) + 1e-5)
            hidden = SILU_GAIN * jax.nn.silu(hidden)
    return hidden.reshape(*radial.shape[:-1], -1)


def normalized_features(features, weights):
    """Features sent to the neighbours have unit mean square on every atom."""
    import jax.numpy as jnp

    from mlip.model.mace.layer import mix_degrees

    size = jnp.sqrt((features**2).mean(axis=(1, 2), keepdims=True) + 1e-5)
    return mix_degrees(features / size, weights)


def nonlinear_embedding(features, weights):
    """What neighbours send in the first layer: their species' vector through SiLU."""
    import jax

    from mlip.model.mace.layer import SILU_GAIN, mix_degrees

    first = ("readout", "hidden") not in weights  # of two layers
    return mix_degrees(SILU_GAIN * jax.nn.silu(features) if first else features, weights)


class RadialFunctionsByPair:
    """The radial network's first products scaled by learned numbers of the two elements.

    Pairs of elements are told apart by the sum of their covalent radii, smoothly.
    """

    N_FEATURES = 16

    def layer_shapes(self, config, n_species, layer):
        from mlip.model.mace.layer import layer_shapes

        return layer_shapes(config, n_species, layer) | {
            ("pair",): (self.N_FEATURES, config.radial_widths[0])
        }

    def transform_distance(self, name, distance, reach):
        import jax.numpy as jnp

        centres = jnp.linspace(0.5, 3.0, self.N_FEATURES, dtype=distance.dtype)
        self.pair = jnp.exp(-(((reach[..., None] - centres) / 0.1) ** 2))
        return distance

    def radial_network(self, weights, radial):
        import jax

        from mlip.model.mace.layer import SILU_GAIN, mix_channels

        hidden = mix_channels(radial, weights["radial", 0])
        hidden *= 1 + mix_channels(self.pair, weights["pair",])
        for step in range(1, sum(key[0] == "radial" for key in weights)):
            hidden = mix_channels(SILU_GAIN * jax.nn.silu(hidden), weights["radial", step])
        return hidden

    def functions(self):
        names = "layer_shapes", "transform_distance", "radial_network"
        return {name: getattr(self, name) for name in names}


def steep_rate(config, step, progress):
    """Three times the usual rate at first, and down to it after a sixth of the training."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    return warm * 3 * config.highest_rate * (1 - min(progress, 1.0)) ** 6


def replaced(**functions):
    """Put functions in the place of the package's."""
    from mlip.model.mace import layer, model, network
    from mlip.training import optimizer

    homes = {
        "radial_network": layer,
        "transform_distance": layer,
        "layer_shapes": network,
        "mix_degrees": network,
        "initialize": model,
        "rate": optimizer.OptimizerConfig,
    }
    for name, function in functions.items():
        setattr(homes.get(name, optimizer), name, function)


RECIPE = SIZES["small"] | {"radial_widths": (64, 64, 64)}
ADAM = {"optimizer": "adam"}
NORMALIZED_RADIAL = {
    "functions": {"radial_network": normalized_radial_network},
    "network": {"cutoff_on": "functions"},
}
# Settings by section of the configuration, and functions that are replaced.
VARIANTS = {
    "recipe": {},
    "learning rate 0.01": {"optimizer": {"learning_rate": 0.01}},
    "learning rate 0.1": {"optimizer": {"learning_rate": 0.1}},
    "Adam": {"optimizer": ADAM},
    "Adam with learning rate 0.02": {"optimizer": ADAM | {"learning_rate": 0.02}},
    "Adam with learning rate 0.03": {"optimizer": ADAM | {"learning_rate": 0.03}},
    "Adam without amsgrad": {"optimizer": ADAM | {"amsgrad": False}},
    "Adam and normalised radial network": NORMALIZED_RADIAL | {"optimizer": ADAM},
    "Adam and normalised features": {
        "functions": {"mix_degrees": normalized_features},
        "optimizer": ADAM,
    },
    "weight decay 0.001": {"optimizer": {"weight_decay": 0.001}},
    "weight decay 0.003": {"optimizer": {"weight_decay": 0.003}},
    "weight decay 0.01": {"optimizer": {"weight_decay": 0.01}},
    "weight decay 0.1": {"optimizer": {"weight_decay": 0.1}},
    "AdamW": {"optimizer": {"optimizer": "adamw"}},
    "schedule-free Adam": {
        "functions": {"build": schedule_free, "apply": lambda pair, *_: pair},
        "optimizer": ADAM,
    },
    "SOAP with learning rate 0.01": {
        "functions": {"build": soap},
        "optimizer": {"learning_rate": 0.01},
    },
    "SOAP with learning rate 0.03": {"functions": {"build": soap}},
    "linear decay": {"optimizer": {"decay": "linear"}},
    "no decay": {"optimizer": {"decay": "none"}},
    "average 0.99": {"optimizer": {"ema": 0.99}},
    "average 0.999": {"optimizer": {"ema": 0.999}},
    "batches of 4": {"batch_size": 4},
    "batches of 1": {"batch_size": 1},
    "Huber's loss": {"loss": {"loss": "huber"}},
    "one stage": {"loss": {"stage_two_energy_weight": 0.0}},
    "energy weight 10 at first": {"loss": {"energy_weight": 10.0}},
    "second stage from the middle": {"loss": {"stage_two": 0.5}},
    "small readouts at first": {"functions": {"initialize": small_readouts}},
    "normalised radial network": NORMALIZED_RADIAL,
    "normalised features": {"functions": {"mix_degrees": normalized_features}},
    "radial network of one hidden layer": {"network": {"radial_widths": (64,)}},
    "radial network of two hidden layers": {"network": {"radial_widths": (64, 64)}},
    "32 channels with vectors": {"network": {"channels": 32, "hidden_l": 1}},
    "32 channels with vectors and one hidden layer": {
        "network": {"channels": 32, "hidden_l": 1, "radial_widths": (64,)}
    },
    "distances by element pair": {"network": {"distance_transform": "agnesi"}},
    "radial functions by element pair": {
        "functions": RadialFunctionsByPair().functions(),
        "network": {"distance_transform": "agnesi"},  # which lets the radii in
    },
    "radial functions by element pair and one hidden layer": {
        "functions": RadialFunctionsByPair().functions(),
        "network": {"distance_transform": "agnesi", "radial_widths": (64,)},
    },
    "nonlinear species embedding": {"functions": {"mix_degrees": nonlinear_embedding}},
    "larger rates early": {"functions": {"rate": steep_rate}},
}


def train_one(task):
    """Train a variant and print its row; in a process of its own."""
    import mlip

    variant = dict(VARIANTS[task["variant"]])
    replaced(**variant.pop("functions", {}))
    sections = {
        "network": mlip.NetworkConfig(**RECIPE | variant.pop("network", {})),
        "loss": mlip.LossConfig(**variant.pop("loss", {})),
        "optimizer": mlip.OptimizerConfig(**variant.pop("optimizer", {})),
    }
    chosen = SETS[task["set"]]
    keys = mlip.LabelKeys(**chosen.get("keys", {}))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        path, tests = divide(chosen, folder)
        run = Path(folder) / "run"
        config = mlip.TrainConfig(
            train=str(path),
            e0=str(chosen.get("e0", "auto")),
            out=str(run),
            max_epochs=task["epochs"],
            seed=task["seed"],
            keys=keys,
            check=False,
            **sections,
            **variant,
        )
        potential = mlip.train(config, show=clock)
        row = task | {
            "parameters": potential.n_parameters,
            "processor_seconds_an_epoch": clock.median(),
            "validation": {k: v for k, v in potential.training.items() if k.startswith("valid_")},
            "test": test_errors(run / "model.safetensors", tests, keys),
            **machine(),
        }
    print(json.dumps(row))


class Clock(Silent):
    """Takes the processor's time of every epoch."""

    def __init__(self):
        self.times = []

    def update(self, progress, fraction, row):
        if row is not None:
            self.times.append(time.process_time())

    def median(self):
        steps = [late - early for early, late in zip(self.times, self.times[1:])]
        return statistics.median(steps)


def same(task, row):
    return all(row[key] == value for key, value in task.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="separated by commas")
    parser.add_argument("--seeds", default="0", help="one or several, such as 0,1,2")
    parser.add_argument("--cores", default="0", help="one training on each, such as 0,1")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        train_one(args.task)
        return
    known = json.loads(ROWS.read_text()) if ROWS.exists() else {"rows": []}
    tasks = [
        {"set": args.set, "variant": variant, "epochs": args.epochs, "seed": int(seed)}
        for seed in args.seeds.split(",")
        for variant in args.variants.split(",")
    ]
    tasks = [t for t in tasks if not any(same(t, row) for row in known["rows"])]
    cores, writing = Queue(), threading.Lock()
    for core in args.cores.split(","):
        cores.put(core)

    def train(task):
        core = cores.get()
        words = [sys.executable, __file__, "--set", args.set, "--epochs", str(args.epochs)]
        done = subprocess.run(
            ["taskset", "-c", core, *words, "--task", json.dumps(task)],
            capture_output=True,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        cores.put(core)
        if done.returncode:
            print(f"{task['variant']} failed: {done.stderr[-500:]}", flush=True)
            return
        row = json.loads(done.stdout.splitlines()[-1])
        with writing:
            # Another run of this script may have written meanwhile.
            now = json.loads(ROWS.read_text()) if ROWS.exists() else {"rows": []}
            now["rows"].append(row)
            with atomic_write(ROWS) as temporary:
                temporary.write_text(json.dumps(now, indent=1) + "\n")
        errors = "  ".join(
            f"{name} {e['energy_rmse_mev']:.2f} / {e['forces_rmse_mev_per_A']:.2f}"
            for name, e in row["test"].items()
        )
        seconds = row["processor_seconds_an_epoch"]
        print(f"{row['variant']:32} seed {row['seed']}  {seconds:.2f} s  {errors}", flush=True)

    with ThreadPoolExecutor(cores.qsize()) as pool:
        list(pool.map(train, tasks))


if __name__ == "__main__":
    main()
