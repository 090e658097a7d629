"""Devices that share the batches of a training give what one device gives."""

import os
import shutil
import signal
import subprocess
import sys
import time

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from mlip.model.file import load_model
from mlip.quickstart import data_file

CONFIG = """
train = "train.xyz"
batch_size = 5
max_epochs = 12
dtype = "float64"
checkpoint_seconds = 0.5
[network]
channels = 4
l_max = 1
correlation = 2
radial_widths = [8]
cutoff = 3.0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    # 21 frames to train on, not all of a size: parts of a batch have two frames, one or none.
    frames = ase.io.read(data_file("ethanol_train.xyz"), ":24")
    for number, atoms in enumerate(frames[::3]):
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        del atoms[-1 - number % 2 :]
        results["forces"] = results["forces"][: len(atoms)]
        atoms.calc = SinglePointCalculator(atoms, **results)
    ase.io.write(folder / "train.xyz", frames)
    atoms = data_file("ethanol_isolated_atoms.xyz")
    (folder / "config.toml").write_text(f'e0 = "{atoms}"\n{CONFIG}')
    return folder


def start(folder, devices, out, *more):
    flags = os.environ.get("XLA_FLAGS", "")
    return subprocess.Popen(
        [sys.executable, "-m", "mlip.cli", "train", "config.toml", "--out", out, *more],
        env=os.environ
        | {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip()},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def alone(folder):
    finish(start(folder, 1, "alone"))
    return load_model(folder / "alone" / "model.safetensors")


@pytest.fixture(scope="module")
def together(folder):
    finish(start(folder, 4, "together"))
    return load_model(folder / "together" / "model.safetensors")


def test_four_devices_train_as_one(alone, together):
    assert together.training["steps"] == alone.training["steps"] == 12 * 5
    for name, value in alone.parameters.items():
        np.testing.assert_allclose(together.parameters[name], value, rtol=0, atol=1e-8)


@pytest.fixture(scope="module")
def stopped(folder):
    """Folder of a shared training that was stopped after some epochs."""
    process, out = start(folder, 4, "stopped"), folder / "stopped"
    rows = out / "metrics.jsonl"
    while process.poll() is None and not (rows.exists() and rows.read_text().count("\n") > 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM
    return out


def test_a_shared_training_that_was_stopped_goes_on_bit_for_bit(folder, stopped, together):
    shutil.copytree(stopped, folder / "resumed")
    finish(start(folder, 4, "resumed", "--resume"))
    found = load_model(folder / "resumed" / "model.safetensors")
    for name, value in together.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], value)


def test_a_shared_training_goes_on_with_another_number_of_devices(folder, stopped, together):
    shutil.copytree(stopped, folder / "moved")
    finish(start(folder, 2, "moved", "--resume"))
    found = load_model(folder / "moved" / "model.safetensors")
    for name, value in together.parameters.items():
        np.testing.assert_allclose(found.parameters[name], value, rtol=0, atol=1e-8)


def test_a_frame_in_any_part_is_named(folder):
    frames = ase.io.read(folder / "train.xyz", ":")
    frames[11].calc.results["forces"][0, 0] = 9e6
    ase.io.write(folder / "bad.xyz", frames)
    # Times this weight its square is no number, while those of the others are.
    flags = "--train bad.xyz --no-check --valid train.xyz --forces-weight 1e296".split()
    process = start(folder, 4, "bad", *flags)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "in bad.xyz#11;" in output
