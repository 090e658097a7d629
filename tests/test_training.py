"""Training: the right gradient, learning, resuming bit for bit, stopping with a reason."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CONFIGS, SHAPE, make_structure

from mlip.config import to_toml
from mlip.data.dataset import read
from mlip.data.graph import build_table, pad, pad_labels
from mlip.data.quantities import DERIVED
from mlip.data.structure import to_ase
from mlip.model.derivatives import outputs_and_pull, with_derivatives
from mlip.model.mace.model import NetworkConfig
from mlip.model.potential import untrained
from mlip.quickstart import data_file
from mlip.training import optimizer
from mlip.training.batches import Frames
from mlip.training.loop import train
from mlip.training.loss import LossConfig, batch_loss, label_counts, loss_and_gradient
from mlip.training.optimizer import OptimizerConfig
from mlip.training.setup import TrainConfig
from mlip.training.states import RunStates
from mlip.training.step import error_sums

TINY = NetworkConfig(channels=4, l_max=1, correlation=2, radial_widths=(8,), cutoff=3.0)


def config_for(tmp_path, **options):
    """A run of some seconds on 24 frames of ethanol."""
    data = tmp_path / "train.xyz"
    if not data.exists():
        frames = ase.io.read(data_file("ethanol_train.xyz"), ":24")
        ase.io.write(data, frames)
    settings = {
        "train": str(data),
        "valid": "0.25",
        "e0": str(data_file("ethanol_isolated_atoms.xyz")),
        "out": str(tmp_path / "run"),
        "network": TINY,
        "max_epochs": 4,
        "batch_size": 3,
        **options,
    }
    return TrainConfig(**settings)


def rows_of(run):
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("loss", "network"),
    [
        ("mse", NetworkConfig(channels=3, l_max=2, hidden_l=1, correlation=2, radial_widths=(6,))),
        ("huber", replace(CONFIGS["densities"], cutoff_on="functions")),
    ],
    ids=["mse", "huber"],
)
def test_the_gradient_is_that_of_reverse_mode_and_finite_differences(loss, network):
    config = LossConfig(loss=loss, huber_delta=0.1)
    potential = untrained(network, (1, 8, 14), dtype="float64", average_neighbors=8)
    potential = potential.running(block=2, least_slots=0)
    rng = np.random.default_rng(0)
    frames = []
    for kind in ("molecule", "crystal", "slab"):
        structure = make_structure(kind)
        labels = {"energy": 1.0, "forces": rng.normal(size=(len(structure), 3))}
        if kind == "crystal":
            labels["stress"] = np.diag([0.1, 0.2, 0.3])
        frames.append(replace(structure, **labels))
    frames[2] = replace(frames[2], energy=None)
    packed = [(potential.species_of(s), s, build_table(s, network.cutoff)) for s in frames]
    graph = pad(packed, SHAPE, network.cutoff, "float64")
    labels = pad_labels(frames, [0.0, 0.5, 0.0], SHAPE, "float64")
    weights = {"energy": 2.0, "forces": 30.0, "stress": 50.0}

    def plain(parameters):
        inner = replace(potential.weights, parameters=parameters)
        outputs, pull = outputs_and_pull(potential.surface, inner, graph)
        outputs = with_derivatives(outputs, graph, pull)
        return batch_loss(config, weights, label_counts(labels), graph, labels, outputs)[0]

    with potential.precision():
        start, reverse = potential.weights.parameters, jax.jit(jax.value_and_grad(plain))
        expected_loss, expected = reverse(start)
        for name, derivative in expected.items():
            way = rng.normal(size=derivative.shape)
            ends = [start | {name: start[name] + h * way} for h in (-1e-5, 1e-5)]
            before, after = (float(reverse(end)[0]) for end in ends)
            along = (np.asarray(derivative) * way).sum()
            difference = (after - before) / 2e-5
            np.testing.assert_allclose(
                difference, along, rtol=1e-6, atol=1e-9 * after, err_msg=name
            )

    for kept in (0, 1000):  # intermediates made again block by block, and kept
        surface = potential.surface.running(kept_blocks=kept)
        with potential.precision():
            gradient, (value, (shares, sums)) = jax.jit(
                lambda w, surface=surface: loss_and_gradient(
                    surface, config, weights, w, graph, labels
                )
            )(potential.weights)
        np.testing.assert_allclose(value, expected_loss, rtol=1e-12)
        np.testing.assert_allclose(np.asarray(shares).sum(), value, rtol=1e-12)
        assert [float(sums[f"{k}_count"]) for k in ("energy", "forces", "stress")] == [2, 54, 9]
        for name in expected:
            np.testing.assert_allclose(
                gradient[name], expected[name], rtol=1e-9, atol=1e-12 * float(value), err_msg=name
            )


def test_a_batch_in_small_parts_has_the_gradient_and_errors_of_the_whole(tmp_path):
    config = config_for(tmp_path, batch_size=5, dtype="float64")
    structures = [
        replace(s, energy=None) if i == 1 else s for i, s in enumerate(read(config.train))
    ]
    tables = [build_table(s, TINY.cutoff) for s in structures]
    found = []
    for block, kept in ((0, 16), (2, 16), (2, 0)):  # all atoms at once, and as for a small cache
        potential = untrained(TINY, (1, 6, 8), dtype="float64", average_neighbors=5)
        potential = potential.running(block=block, least_slots=0, kept_blocks=kept)
        frames = Frames(structures, tables, potential, config)
        graph, labels = frames.batch([3, 1, 4, 0, 5])
        settings = potential.surface, config.loss, None, frames.turns
        with potential.precision():
            gradient, (loss, (shares, _)) = jax.jit(
                lambda w, t=frames.turns, g=graph, b=labels, n=potential.surface: loss_and_gradient(
                    n, config.loss, config.loss.weights(0.0), w, g, b, turns=t
                )
            )(potential.weights)
            sums = error_sums(*settings, potential.weights, graph, labels)
        found.append((frames.turns, gradient, loss, np.sort(shares)[-5:], sums))
    assert [turns for turns, *_ in found] == [1, 5, 5]
    expected, *others = (jax.tree.leaves(results) for _, *results in found)
    for one, *rest in zip(expected, *others, strict=True):
        for other in rest:
            np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-10)


def test_missing_labels_do_not_pull_on_the_parameters():
    potential = untrained(TINY, (1, 6, 8), dtype="float64", average_neighbors=5)
    structure = read(data_file("ethanol_train.xyz"))[0].without_labels()
    graph = pad(
        [(potential.species_of(structure), structure, build_table(structure, 3.0))],
        SHAPE,
        3.0,
        "float64",
    )
    labels = pad_labels([structure], [0.0], SHAPE, "float64")
    with potential.precision():
        ones = dict.fromkeys(DERIVED, 1.0)
        gradient, (loss, _) = jax.jit(
            lambda w: loss_and_gradient(potential.surface, LossConfig(), ones, w, graph, labels)
        )(potential.weights)
    assert float(loss) == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_huber_agrees_with_mse_for_small_errors_and_grows_linearly_beyond():
    from mlip.training.loss import _penalty

    huber, mse = LossConfig(loss="huber", huber_delta=0.1), LossConfig()
    errors = jnp.array([0.05, -0.05, 1.0, 2.0])
    values = _penalty(huber, errors)
    np.testing.assert_allclose(values[:2], _penalty(mse, errors)[:2], rtol=1e-6)
    np.testing.assert_allclose(values[3] - values[2], 2 * 0.1 * 1.0, rtol=1e-5)


def test_the_second_stage_raises_the_energy_weight():
    config = LossConfig(energy_weight=1, stage_two=0.6, stage_two_energy_weight=500)
    assert config.weights(0.59)["energy"] == 1
    assert config.weights(0.6)["energy"] == 500
    assert LossConfig(stage_two_energy_weight=0).weights(1.0)["energy"] == 1


@pytest.mark.parametrize(("first", "later"), [(0.0, 0.0), (1.0, 1000.0), (5000.0, 5000.0)])
def test_the_second_stage_lowers_no_energy_weight_and_begins_none(first, later):
    config = LossConfig(energy_weight=first)
    assert (config.weights(0.0)["energy"], config.weights(1.0)["energy"]) == (first, later)


def test_the_learning_rate_warms_up_and_decays():
    config = OptimizerConfig(learning_rate=0.02, warmup_steps=10, final_learning_rate=0.002)
    assert config.rate(4, 0.0) == pytest.approx(0.01)
    assert config.rate(100, 0.5) == pytest.approx(0.011)
    assert config.rate(100, 1.0) == pytest.approx(0.002)
    assert replace(config, decay="linear").rate(100, 0.25) == pytest.approx(0.0155)
    assert replace(config, decay="none").rate(100, 1.0) == pytest.approx(0.02)


def test_muon_of_stacked_matrices_is_muon_of_each():
    sizes = {"b": (3, 4), "a": (3, 4), "long": (5, 3), "species": (2, 3, 4), "d": (3, 4)}
    rng = np.random.default_rng(0)
    parameters = {name: rng.normal(size=size) for name, size in sizes.items()}
    each = optax.contrib.muon(-1.0, consistent_rms=0.2, weight_decay=0.1)
    ours, state = optimizer.muon(weight_decay=0.1), each.init(parameters)
    stacks = ours.init(parameters)
    for _ in range(3):
        gradients = {name: rng.normal(size=size) for name, size in sizes.items()}
        expected, state = each.update(gradients, state, parameters)
        updates, stacks = ours.update(gradients, stacks, parameters)
        assert updates.keys() == expected.keys()
        for name in sizes:
            np.testing.assert_allclose(updates[name], expected[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["muon", "adam", "adamw"])
def test_training_learns(tmp_path, name):
    optimizer = OptimizerConfig(optimizer=name, warmup_steps=5)
    config = config_for(tmp_path, max_epochs=80, optimizer=optimizer)
    potential = train(config)
    rows = rows_of(config.out)
    assert [row["epoch"] for row in rows] == list(range(1, 81))
    assert rows[-1]["valid_forces_rmse_mev_per_A"] < 0.5 * rows[0]["valid_forces_rmse_mev_per_A"]
    best = min(rows, key=lambda row: row["valid_loss"])
    assert potential.training["best_epoch"] == best["epoch"]
    np.testing.assert_allclose(
        potential.training["valid_forces_rmse_mev_per_A"], best["valid_forces_rmse_mev_per_A"]
    )


def parameters_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


class StopAt:
    """Sends this process a signal after some steps, as a user would."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number, self.lines = step, number, []

    def line(self, text):
        self.lines.append(text)

    def update(self, progress, fraction, row):
        if row is None and progress.step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("step", "number"), [(9, signal.SIGTERM), (12, signal.SIGINT)])
def test_stopped_and_resumed_equals_never_stopped_bit_for_bit(tmp_path, step, number):
    from mlip.runtime import Stop

    whole = train(config_for(tmp_path, out=str(tmp_path / "whole")))
    config = config_for(tmp_path)
    show = StopAt(step, number)
    with pytest.raises(Stop):
        train(config, show=show)
    assert "go on with --resume" in show.lines[-1]
    resumed = train(config, resume=True)
    parameters_equal(resumed.parameters, whole.parameters)
    drop = {"seconds"}
    for one, other in zip(rows_of(config.out), rows_of(tmp_path / "whole"), strict=True):
        assert {k: v for k, v in one.items() if k not in drop} == {
            k: v for k, v in other.items() if k not in drop
        }


def test_kill_9_loses_nothing_but_the_work_since_the_last_state(tmp_path):
    whole = train(config_for(tmp_path, out=str(tmp_path / "whole"), max_epochs=30))
    config = config_for(tmp_path, max_epochs=30, checkpoint_seconds=0.0)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    command = [sys.executable, "-m", "mlip.cli", "train", str(path)]
    # On as many devices as this process has: the command would take a core for each frame.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1".strip()
    environment, kills = os.environ | {"XLA_FLAGS": flags}, 0
    for attempt in range(3):
        resume = ["--resume"] if attempt else []
        process = subprocess.Popen([*command, *resume], env=environment)
        reached = 10 * (attempt + 1)
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            names = [p.name for p in (Path(config.out) / "states").glob("*")]
            states = [int(name) for name in names if name.isdigit()]
            if states and max(states) >= reached:
                # With a state after every step this is nearly always in the middle of a write.
                process.kill()
                kills += 1
                break
            time.sleep(0.003)
        process.wait(timeout=240)
    assert kills == 3
    resumed = train(config, resume=True)
    parameters_equal(resumed.parameters, whole.parameters)
    assert [row["epoch"] for row in rows_of(config.out)] == list(range(1, 31))


def test_a_resume_with_other_settings_is_refused(tmp_path):
    config = config_for(tmp_path, max_epochs=1)
    train(config)
    with pytest.raises(FileExistsError, match="holds a run already; go on with it by --resume"):
        train(config)
    with pytest.raises(ValueError, match=r"with seed = 5: the run was started with 0"):
        train(replace(config, seed=5), resume=True)
    with pytest.raises(FileNotFoundError, match="holds no run to resume"):
        train(replace(config, out=str(tmp_path / "other")), resume=True)


def test_a_resume_from_states_of_another_version_is_refused(tmp_path, monkeypatch):
    config = config_for(tmp_path, max_epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr("mlip.training.states.STATE_FORMAT", 1)
        train(config)
    with pytest.raises(ValueError, match="states of format 1, .* goes on from format 2; start a"):
        train(replace(config, max_epochs=2), resume=True)


def test_a_resume_with_other_data_is_refused(tmp_path):
    config = config_for(tmp_path, max_epochs=1)
    train(config)
    ase.io.write(config.train, ase.io.read(config.train, ":")[::-1])
    with pytest.raises(ValueError, match=r"the data is not what it was when the run started"):
        train(replace(config, max_epochs=2), resume=True)


def test_training_stops_early_and_within_its_minutes(tmp_path):
    frozen = OptimizerConfig(learning_rate=1e-12, ema=0.0)
    config = config_for(tmp_path, max_epochs=50, patience=3, optimizer=frozen)
    train(config)
    assert len(rows_of(config.out)) < 50
    config = config_for(tmp_path, out=str(tmp_path / "timed"), max_epochs=None, max_minutes=0.1)
    start = time.monotonic()
    train(config)
    assert time.monotonic() - start < 90
    assert rows_of(config.out)[-1]["learning_rate"] < 1e-3


def test_the_running_average_soon_forgets_the_random_start():
    config, average = OptimizerConfig(ema=0.995), 1.0
    for step in range(90):  # towards parameters that are zero
        average = optimizer.apply(0.0, 0.0, average, 0.1, config.renewal(step))[1]
    # The product of (1 + n) / (10 + n) for n = 1 ... 90, where a fixed 0.995 leaves 0.64.
    np.testing.assert_allclose(average, 10 / math.comb(100, 9), rtol=1e-5)
    assert config.renewal(10_000) == pytest.approx(0.005)


def test_a_loss_that_is_not_finite_names_the_frame(tmp_path):
    config = config_for(tmp_path)
    frames = ase.io.read(config.train, ":")
    frames[11].calc.results["forces"][0, 0] = 1e6
    ase.io.write(config.train, frames)
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+ in train\.xyz#11;"):
        # Times the weight its square is no float32, while those of the others are.
        train(replace(config, valid="0.05", loss=LossConfig(forces_weight=1e28)))


def test_float64_training_keeps_float64(tmp_path):
    potential = train(config_for(tmp_path, max_epochs=1, dtype="float64"))
    assert potential.dtype == "float64"
    assert {leaf.dtype for leaf in potential.parameters.values()} == {np.dtype("float64")}
    assert not jax.config.jax_enable_x64


def test_isolated_atoms_in_the_training_set_give_e0_and_are_not_trained_on(tmp_path):
    frames = ase.io.read(data_file("ethanol_train.xyz"), ":8")
    atoms = ase.io.read(data_file("ethanol_isolated_atoms.xyz"), ":")
    ase.io.write(tmp_path / "mixed.xyz", frames + atoms)
    config = config_for(tmp_path, train=str(tmp_path / "mixed.xyz"), e0="auto", max_epochs=1)
    potential = train(config)
    energies = {a.numbers[0]: a.get_potential_energy() for a in atoms}
    np.testing.assert_allclose(potential.e0, [energies[z] for z in potential.species])
    assert potential.training["n_train"] + potential.training["n_valid"] == 8
    assert potential.training["e0_source"] == "isolated atoms in the training set"


def test_stress_is_learned_and_reported(tmp_path):
    config = config_for(
        tmp_path, train=str(data_file("silicon_test.xyz")), e0="auto", max_epochs=3, valid="0.2"
    )
    train(config)
    rows = rows_of(config.out)
    assert rows[-1]["valid_stress_rmse_mev_per_A3"] < rows[0]["valid_stress_rmse_mev_per_A3"]


def test_states_survive_a_write_that_is_cut_short(tmp_path):
    states = RunStates(tmp_path / "states")
    states.save({"x": np.arange(3.0)}, {"step": 1})
    states.close()
    # What orbax leaves behind when it is killed: a folder without its commit.
    (tmp_path / "states" / "2.orbax-checkpoint-tmp-7").mkdir()
    again = RunStates(tmp_path / "states")
    state, progress = again.restore({"x": np.zeros(3)})
    np.testing.assert_array_equal(state["x"], np.arange(3.0))
    assert progress == {"step": 1}
    again.close()


def test_data_of_another_element_than_trained_is_refused(tmp_path):
    frames = ase.io.read(data_file("ethanol_train.xyz"), ":4")
    ase.io.write(tmp_path / "valid.xyz", ase.io.read(data_file("silicon_test.xyz"), ":2"))
    config = config_for(tmp_path, valid=str(tmp_path / "valid.xyz"))
    ase.io.write(config.train, frames)
    with pytest.raises(ValueError, match=r"valid\.xyz#0 holds Si, which this potential was not"):
        train(config)


def test_structures_of_one_set_come_back_to_ase_unchanged():
    structure = read(data_file("silicon_test.xyz"))[0]
    atoms = to_ase(structure)
    np.testing.assert_array_equal(atoms.positions, structure.positions)
    np.testing.assert_array_equal(atoms.cell.array, structure.cell)
