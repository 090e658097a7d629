"""A simulation that was killed goes on bit for bit, and its files hold whole frames only."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from pairs import argon, crystal

from mlip.data.structure import to_ase
from mlip.model.file import save_model
from mlip.model.mace.model import NetworkConfig
from mlip.model.potential import untrained
from mlip.model.terms import TermsConfig
from mlip.simulation.dynamics import DynamicsConfig, Start, run

# All that a state can hold: random numbers, a cell in motion, chains, tables that are renewed.
CONFIG = DynamicsConfig(
    ensemble="npt",
    thermostat="csvr",
    cell_motion="full",
    temperature=(60.0,),
    pressure=0.2,
    timestep=4.0,
    steps=240,
    save_every=20,
    log_every=7,
    checkpoint_every=60,
    skin=0.2,
)


def simulate(folder, resume=False, **changes):
    config = replace(CONFIG, **changes)
    return run(argon(), crystal(2), config, out=folder, resume=resume, folded=False)


def contents(folder, trajectory="trajectory.xyz"):
    return (folder / trajectory).read_bytes(), (folder / "thermo.csv").read_bytes()


def state(folder):
    with np.load(folder / "checkpoint.npz") as file:
        return {name: file[name] for name in file.files if name != "card"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    simulate(folder)
    return folder


@pytest.mark.parametrize("first", [120, 97])
def test_two_halves_are_one_whole(whole, tmp_path, first):
    simulate(tmp_path, steps=first)
    simulate(tmp_path, resume=True)
    assert contents(tmp_path) == contents(whole)
    for name, array in state(whole).items():
        np.testing.assert_array_equal(state(tmp_path)[name], array, err_msg=name)


def test_the_trajectory_is_cut_back_to_the_checkpoint(whole, tmp_path):
    """Beyond the checkpoint lie frames, rows and half a frame of a run that was killed."""
    simulate(tmp_path, steps=120)
    for name in ("trajectory.xyz", "thermo.csv"):
        with open(tmp_path / name, "ab") as file:
            file.write((whole / name).read_bytes()[-1000:-10])
    simulate(tmp_path, resume=True)
    assert contents(tmp_path) == contents(whole)


def test_frames_hold_what_was_simulated(whole):
    frames = ase.io.read(whole / "trajectory.xyz", ":")
    assert [frame.info["step"] for frame in frames] == list(range(0, 241, 20))
    rows = np.genfromtxt(whole / "thermo.csv", delimiter=",", names=True)
    assert list(rows["step"]) == list(range(0, 241, 7))
    at = int(np.flatnonzero(rows["step"] == 140)[0])
    frame = frames[7]
    np.testing.assert_allclose(rows["kinetic_eV"][at], frame.get_kinetic_energy(), rtol=1e-6)
    np.testing.assert_allclose(rows["volume_A3"][at], frame.get_volume(), rtol=1e-6)
    pressure = -np.trace(frame.get_stress(voigt=False, include_ideal_gas=True)) / 3
    np.testing.assert_allclose(rows["pressure_GPa"][at] * 0.006241509, pressure, rtol=1e-5)


def test_an_ase_trajectory_resumes_too(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    simulate(one, trajectory="traj")
    simulate(two, trajectory="traj", steps=120)
    frames = ase.io.read(two / "trajectory.traj", ":")
    with ase.io.Trajectory(two / "trajectory.traj", "a") as file:
        file.write(frames[-1])
    simulate(two, trajectory="traj", resume=True)
    ours, expected = (ase.io.read(f / "trajectory.traj", ":") for f in (two, one))
    assert len(ours) == len(expected) == 13
    for a, b in zip(ours, expected):
        np.testing.assert_array_equal(a.positions, b.positions)


def test_several_systems_resume_in_folders_of_their_own(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    changes = {"replicas": 2, "ensemble": "nvt", "thermostat": "langevin"}
    simulate(one, **changes)
    simulate(two, **changes, steps=120)
    simulate(two, **changes, resume=True)
    for name in ("000", "001"):
        assert contents(one / name) == contents(two / name)
    assert contents(one / "000") != contents(one / "001")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timestep": 2.0}, "timestep = 2.0: the simulation was started with 4.0"),
        ({"seed": 3}, "seed = 3: the simulation was started with 0"),
        ({"thermostat": "langevin"}, "thermostat = 'langevin'"),
        ({"ensemble": "nvt"}, "ensemble = 'nvt'"),
    ],
)
def test_a_resume_with_other_settings_is_refused(whole, changes, words):
    before = contents(whole)
    with pytest.raises(ValueError, match=words):
        simulate(whole, resume=True, **changes)
    assert contents(whole) == before


def test_a_resume_with_another_model_or_start_is_refused(whole):
    with pytest.raises(ValueError, match="the start = "):
        run(argon(), crystal(2, seed=5), CONFIG, out=whole, resume=True, folded=False)
    other = replace(argon(), e0=np.ones(1))
    with pytest.raises(ValueError, match="the model = "):
        run(other, crystal(2), CONFIG, out=whole, resume=True, folded=False)


def test_a_system_that_was_stopped_stays_so(tmp_path):
    fast = np.zeros((32, 3))
    fast[0] = 0.08
    config = replace(
        CONFIG, ensemble="nve", timestep=2.0, max_force=3.0, steps=60, temperature=(60.0, 60.0)
    )
    starts = [Start(crystal(2)), Start(crystal(2), fast)]
    _, hit = run(argon(), starts, config, out=tmp_path, folded=False)
    assert hit.stopped
    frames = ase.io.read(tmp_path / "001" / "trajectory.xyz", ":")
    assert f"stopped at step {frames[-1].info['step']}:" in hit.stopped
    assert frames[-1].info["step"] < 60
    longer = replace(config, steps=120)
    calm, again = run(argon(), starts, longer, out=tmp_path, resume=True, folded=False)
    assert again.stopped == hit.stopped
    assert calm.frames[-1].step == 120
    assert ase.io.read(tmp_path / "001" / "trajectory.xyz", ":")[-1].info["step"] < 60


def test_a_folder_that_holds_a_simulation_is_not_overwritten(whole, tmp_path):
    before = contents(whole)
    with pytest.raises(FileExistsError, match="go on with --resume"):
        simulate(whole)
    assert contents(whole) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "trajectory.xyz").write_text("somebody's")
    with pytest.raises(FileExistsError, match=r"holds trajectory\.xyz already"):
        simulate(other)
    with pytest.raises(FileNotFoundError, match="no simulation to resume"):
        simulate(tmp_path, resume=True)


def test_a_damaged_checkpoint_or_trajectory_is_refused(whole, tmp_path):
    simulate(tmp_path, steps=60)
    checkpoint = (tmp_path / "checkpoint.npz").read_bytes()
    (tmp_path / "checkpoint.npz").write_bytes(checkpoint[: len(checkpoint) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        simulate(tmp_path, resume=True)
    (tmp_path / "checkpoint.npz").write_bytes(checkpoint)
    (tmp_path / "trajectory.xyz").write_text("")
    with pytest.raises(ValueError, match="shorter than it was at the checkpoint"):
        simulate(tmp_path, resume=True)


def on_a_disk_of(size, work, *arguments, **settings):
    """The limit on a file's size stands for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        work(*arguments, **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_leaves_whole_frames_and_a_run_to_resume(whole, tmp_path):
    with pytest.raises(OSError, match="make room on the disk and go on with --resume"):
        on_a_disk_of(len(contents(whole)[0]) * 5 // 8, simulate, tmp_path)
    frames = ase.io.read(tmp_path / "trajectory.xyz", ":")
    assert 0 < len(frames) < 13
    simulate(tmp_path, resume=True)
    assert contents(tmp_path) == contents(whole)


def test_a_full_disk_leaves_an_ase_trajectory_to_resume(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    simulate(one, trajectory="traj")
    size = (one / "trajectory.traj").stat().st_size * 5 // 8
    with pytest.raises(OSError, match="could not be written .*; make room on the disk and go on"):
        on_a_disk_of(size, simulate, two, trajectory="traj")
    simulate(two, trajectory="traj", resume=True)
    ours, expected = (ase.io.read(f / "trajectory.traj", ":") for f in (two, one))
    assert len(ours) == len(expected) == 13
    for mine, its in zip(ours, expected):
        np.testing.assert_array_equal(mine.positions, its.positions)


COMMAND = [sys.executable, "-m", "mlip.cli", "md"]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A small model with a repulsive core, a start, and the command that simulates it."""
    folder = tmp_path_factory.mktemp("job")
    network = NetworkConfig(channels=4, l_max=1, correlation=2, radial_widths=(8,))
    terms = TermsConfig(zbl=True)
    potential = untrained(network, ["Ar"], seed=1, average_neighbors=8, terms=terms)
    potential = replace(potential, scale=np.full(1, 0.05))
    save_model(potential, folder / "model.safetensors")
    ase.io.write(folder / "start.xyz", to_ase(crystal(2)))
    flags = "--ensemble nvt --temperature 100 --timestep 2 --save-every 20 --log-every 10"
    words = [str(folder / "model.safetensors"), str(folder / "start.xyz"), *flags.split()]
    return [*COMMAND, *words, "--checkpoint-every", "100", "--steps", "3000", "--skin", "1.0"]


def finish(job, folder, *more):
    done = subprocess.run(
        [*job, "--out", str(folder), *more], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kill_and_resume_at_the_command_line(job, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    output = finish(job, one)
    assert "ns/day" in output
    assert "as asked" in output
    kills, more = 0, []
    while kills < 3:
        process = subprocess.Popen(
            [*job, "--out", str(two), *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        wanted = 400 * (kills + 1)
        while process.poll() is None and steps_of(two) < wanted:
            time.sleep(0.02)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        for frame in ase.io.read(two / "trajectory.xyz", ":"):
            assert len(frame) == 32
        kills, more = kills + 1, ["--resume"]
    assert kills > 0, process.stdout.read()
    finish(job, two, "--resume")
    assert contents(two) == contents(one)


def steps_of(folder):
    """Step of the last whole row that a running simulation has written."""
    if not (folder / "checkpoint.npz").exists():
        return 0
    rows = (folder / "thermo.csv").read_text().splitlines()
    return int(rows[-1].split(",")[0]) if len(rows) > 1 else 0


def test_a_polite_signal_saves_the_state(job, tmp_path):
    process = subprocess.Popen([*job, "--out", str(tmp_path), "--steps", "1000000"],
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    while process.poll() is None and steps_of(tmp_path) < 50:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "go on with --resume" in output
    with np.load(tmp_path / "checkpoint.npz") as file:
        step = int(file["state.step"])
        sizes = json.loads(str(file["card"]))["files"][0]
    assert step >= 50
    assert sizes[0] == os.path.getsize(tmp_path / "thermo.csv")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["key"]["steps"] == step // 10 * 10
    assert report["sections"]["Systems"]["rows"][0][-1] == f"stopped by SIGTERM at step {step}"
