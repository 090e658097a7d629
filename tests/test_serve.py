"""`mlip serve` answers i-PI and any other engine that asks through a socket."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.calculators.socketio import IPIProtocol, SocketIOCalculator
from conftest import CONFIGS, TERMS, make_structure

import mlip
from mlip.data.structure import Structure, to_ase
from mlip.engines.ase import Calculator
from mlip.engines.ipi import serve, what_is_served

BEADS, STEPS = 4, 12
INPUT = """
<simulation verbosity='low'>
  <output prefix='run'>
    <properties stride='1' filename='out'>
      [ conserved, potential ]
    </properties>
    <trajectory filename='pos' stride='1' format='xyz'> positions{{angstrom}} </trajectory>
  </output>
  <total_steps> {steps} </total_steps>
  <prng><seed> 1 </seed></prng>
  <ffsocket mode='unix' name='mlip' pbc='False'><address> {address} </address></ffsocket>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='ase' units='angstrom'> start.xyz </file>
      <velocities mode='thermal' units='kelvin'> 300 </velocities>
    </initialize>
    <forces><force forcefield='mlip'/></forces>
    <motion mode='dynamics'>
      <dynamics mode='nve'><timestep units='femtosecond'> 0.1 </timestep></dynamics>
    </motion>
    <ensemble><temperature units='kelvin'> 300 </temperature></ensemble>
  </system>
</simulation>
"""


def command(*arguments, **settings):
    return subprocess.Popen(
        [sys.executable, "-m", "mlip.cli", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


@pytest.fixture(scope="module")
def water(tmp_path_factory):
    """Folder with a model and a water molecule in i-PI's box."""
    folder = tmp_path_factory.mktemp("serve")
    model = mlip.untrained(
        CONFIGS["vectors"],
        (1, 8),
        1,
        average_neighbors=2,
        e0={"H": -13.0},
        dtype="float64",
        terms=TERMS["vectors"],
    )
    mlip.save(model, folder / "model.safetensors")
    atoms = ase.Atoms("OH2", [[0, 0, 0.1], [0, 0.76, -0.5], [0, -0.76, -0.5]], cell=[20] * 3)
    ase.io.write(folder / "start.xyz", atoms)
    return folder


@pytest.fixture(scope="module")
def ring_polymer(water):
    """Conserved and potential energy, eV, of path-integral dynamics by i-PI and `mlip serve`."""
    pytest.importorskip("ipi", reason="i-PI is not here; pip install '.[test]'")
    address = f"mlip-{os.getpid()}"
    (water / "input.xml").write_text(INPUT.format(steps=STEPS, beads=BEADS, address=address))
    with open(water / "i-pi.log", "w") as log:
        program = [Path(sys.executable).with_name("i-pi"), "input.xml"]
        engine = subprocess.Popen(program, cwd=water, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not Path(f"/tmp/ipi_{address}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        client = command("model.safetensors", "start.xyz", "--unixsocket", address, cwd=water)
        output, errors = client.communicate(timeout=300)
        assert client.returncode == 0, errors + (water / "i-pi.log").read_text()
        engine.wait(timeout=60)
    finally:
        engine.kill()
    assert f"after {BEADS * (STEPS + 1)} evaluations" in output
    assert output.startswith("3 free atoms: the engine's cell is ignored and the virial is zero")
    return np.loadtxt(water / "run.out") * units.Ha


def energy_of(positions, folder):
    molecule = ase.Atoms("OH2", positions)  # free: i-PI's cell does not count
    molecule.calc = Calculator(folder / "model.safetensors")
    return molecule.get_potential_energy()


def test_the_first_energy_is_that_of_the_calculator(ring_polymer, water):
    start = ase.io.read(water / "start.xyz")
    np.testing.assert_allclose(
        ring_polymer[0, 1], energy_of(start.positions, water), rtol=0, atol=1e-6
    )


def test_each_bead_has_its_energy(ring_polymer, water):
    paths = sorted(water.glob("run.pos_*.xyz"))
    assert len(paths) == BEADS
    beads = [ase.io.read(path, "-1").positions for path in paths]
    assert np.std(beads, axis=0).min() > 1e-4, "the test needs beads that are apart"
    energies = [energy_of(positions, water) for positions in beads]
    # i-PI writes positions with 6 digits.
    np.testing.assert_allclose(ring_polymer[-1, 1], np.mean(energies), rtol=0, atol=1e-4)


def test_path_integral_dynamics_conserves_its_energy(ring_polymer):
    conserved, potential = ring_polymer.T
    assert np.isfinite(ring_polymer).all()
    assert np.ptp(potential) > 1e-3, "the test needs motion"
    assert np.ptp(conserved) < 0.1 * np.ptp(potential)


@pytest.mark.parametrize("kind", ["molecule", "crystal"])
def test_any_engine_gets_energy_forces_and_stress(kind, small_potential):
    structure, atoms = make_structure(kind), to_ase(make_structure(kind))
    name = f"mlip-{kind}-{os.getpid()}"
    served = []
    # The engine's atoms have moved, and its cell is strained, since the start.
    atoms.rattle(0.05, seed=1)
    atoms.set_cell(atoms.cell @ [[1.02, 0.01, 0], [0.01, 0.97, 0], [0, 0, 1.01]], scale_atoms=True)
    reference = atoms.copy()
    if kind == "molecule":  # the protocol always sends a cell
        atoms.set_cell(20 * np.eye(3))
    with SocketIOCalculator(unixsocket=name) as engine:
        client = threading.Thread(
            target=lambda: served.append(serve(small_potential, structure, unixsocket=name))
        )
        client.start()
        atoms.calc = engine
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        stress = atoms.get_stress() if kind == "crystal" else None
    client.join()
    reference.calc = Calculator(small_potential)
    assert served == [1]
    assert abs(energy - reference.get_potential_energy()) < 1e-9
    np.testing.assert_allclose(forces, reference.get_forces(), rtol=0, atol=1e-9)
    if kind == "crystal":
        np.testing.assert_allclose(stress, reference.get_stress(), rtol=0, atol=1e-9)


def test_an_engine_with_another_number_of_atoms_is_refused(small_potential):
    structure, atoms = make_structure("molecule"), to_ase(make_structure("molecule"))[:1]
    name, errors = f"mlip-few-{os.getpid()}", []

    def client():
        try:
            serve(small_potential, structure, unixsocket=name)
        except ValueError as error:
            errors.append(str(error))

    with SocketIOCalculator(unixsocket=name) as engine:
        thread = threading.Thread(target=client)
        thread.start()
        atoms.calc = engine
        with pytest.raises(OSError):  # noqa: PT011, the connection ends without a message
            atoms.get_potential_energy()
    thread.join()
    assert "the engine has 1 atoms, but the structure given here has 6" in errors[0]


def greet(engine):
    engine.sendmsg("STATUS")
    assert engine.recvmsg() == "READY"


def send_nan(engine):
    greet(engine)
    engine.sendposdata(np.eye(3), np.eye(3), np.full((6, 3), np.nan))


def send_nonsense(engine):
    greet(engine)
    engine.sendmsg("NONSENSE")


def ask_out_of_turn(engine):
    greet(engine)
    engine.sendmsg("GETFORCE")


def send_garbage(engine):
    engine.socket.sendall(12 * b"\xff")


def die_while_sending(engine):
    greet(engine)
    engine.sendmsg("POSDATA")
    engine.send(np.eye(3), float)


def die_before_the_answer(engine):
    greet(engine)
    engine.sendposdata(20 * np.eye(3), np.eye(3) / 20, make_structure("molecule").positions)
    for _ in range(100):  # so that something is left to be answered
        engine.sendmsg("STATUS")


@pytest.mark.parametrize(
    ("say", "error", "message"),
    [
        (send_nan, ValueError, "positions that are not finite, or a message out of turn"),
        (send_nonsense, ValueError, r"message out of turn .*NONSENSE.*look at its log"),
        (ask_out_of_turn, ValueError, r"message out of turn .*READY.*look at its log"),
        (send_garbage, ValueError, "message out of turn"),
        (
            die_while_sending,
            ConnectionError,
            "ended the conversation without a word .*SocketClosed",
        ),
        (die_before_the_answer, ConnectionError, "ended the conversation without a word"),
    ],
)
def test_an_engine_that_breaks_off_or_talks_nonsense_is_reported(
    small_potential, say, error, message
):
    name = f"mlip-{say.__name__}-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/tmp/ipi_{name}")
        listening.listen()

        def engine():
            connection, _ = listening.accept()
            with connection:
                say(IPIProtocol(connection))

        thread = threading.Thread(target=engine)
        thread.start()
        with pytest.raises(error, match=message) as caught:
            serve(small_potential, make_structure("molecule"), unixsocket=name)
        thread.join()
    Path(f"/tmp/ipi_{name}").unlink()
    assert getattr(caught.value, "strerror", None) is None, "the command line would name no path"


def test_what_is_served_says_what_the_engines_cell_means():
    cell = np.diag([4.0, 5.0, 0.0])
    for structure, text in (
        (make_structure("crystal"), "6 atoms, periodic along x y z"),
        (make_structure("slab"), "6 atoms, periodic along x y"),
        (
            make_structure("molecule"),
            "6 free atoms: the engine's cell is ignored and the virial is",
        ),
        (
            Structure([1], [[0, 0, 0]], cell, [1, 1, 0]),
            "1 atoms, periodic along x y without a volu",
        ),
    ):
        told = what_is_served(structure)
        assert told.startswith(text)
        assert ("virial is zero; for constant pressure give" in told) == (len(told) > 40)


def test_a_start_of_several_frames_is_refused(water):
    ase.io.write(water / "two.xyz", 2 * [ase.io.read(water / "start.xyz")])
    client = command("model.safetensors", "two.xyz", "--unixsocket", "absent", cwd=water)
    _, errors = client.communicate(timeout=120)
    assert client.returncode == 2
    assert errors.startswith("mlip serve: two.xyz holds 2 frames; give the one that the engine was")


def test_nobody_listening_and_wrong_addresses_are_refused(water, small_potential):
    structure = make_structure("molecule")
    with pytest.raises(ConnectionError, match=r"nobody listens at /tmp/ipi_absent .*start the eng"):
        serve(small_potential, structure, unixsocket="absent")
    with socket.socket() as free:  # a port that nobody listens at
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        with pytest.raises(ConnectionError, match=f"nobody listens at localhost:{port}"):
            serve(small_potential, structure, port=port)
    for port in (-1, 0, 99999):
        with pytest.raises(ValueError, match=f"port is {port}; give one between 1 and 65535"):
            serve(small_potential, structure, port=port)
    for address in ({}, {"unixsocket": "a", "port": 1}):
        with pytest.raises(ValueError, match="either a unixsocket, or host and port"):
            serve(small_potential, structure, **address)
    client = command("model.safetensors", "start.xyz", "--unixsocket", "absent", cwd=water)
    _, errors = client.communicate(timeout=120)
    assert client.returncode == 2
    assert errors.startswith("mlip serve: nobody listens at /tmp/ipi_absent")


def test_elements_that_the_potential_does_not_know_are_refused(small_potential):
    sulfur = mlip.from_ase(ase.Atoms("S"))
    with pytest.raises(ValueError, match="holds S, which this potential was not trained on"):
        serve(small_potential, sulfur, unixsocket="absent")
