"""A potential as the client of an engine that asks for forces through a socket, such as i-PI."""

import numpy as np
from ase.calculators.socketio import (
    IPIProtocol,
    SocketClient,
    SocketClosed,
    actualunixsocketname,
)

from mlip.data.structure import to_ase
from mlip.engines.ase import Calculator

HOST, PORT = "localhost", 31415  # i-PI's own defaults


def serve(model, structure, unixsocket=None, host=None, port=None, dtype=None, folded=True):
    """Answer an engine's questions until it ends the conversation.

    Args:
      model: path of a model file, or a `Potential`.
      structure: a `Structure` with the engine's atoms in their order; the engine sends positions
        and cell. The virial is answered where the structure has a volume, else zero.
      unixsocket: name of the engine's socket, which lies at /tmp/ipi_NAME.
      host, port: of the engine instead, localhost and 31415 where only one of them is given.
      dtype: "float32" or "float64"; the model's own by default.
      folded: compute with the folded potential (see `mlip.fold`), several times faster.

    Returns:
      number of answers.

    Raises:
      FileNotFoundError, ValueError: no such model, elements that the potential does not know, both
        kinds of address or none, a port that there cannot be, an engine with another number of
        atoms, or one that sends positions that are not finite or messages out of turn.
      ConnectionError: no engine listens at the address, or it is gone in the middle of a message
        or before it had its answer; between two steps that is the end of the conversation.
      FloatingPointError: the potential gives a number that is not finite.
    """
    network = host is not None or port is not None
    if network == (unixsocket is not None):
        raise ValueError(
            "there is no one address of the engine; give either a unixsocket, or host and port"
        )
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"port is {port}; give one between 1 and 65535, as in the engine's input")
    calculator = Calculator(model, dtype, folded=folded)
    calculator.potential.species_of(structure)
    atoms = to_ase(structure)
    atoms.calc = calculator
    client = _connect(unixsocket, HOST if host is None else host, PORT if port is None else port)
    client.protocol = _Protocol(client.protocol.socket, len(atoms))
    try:
        return sum(1 for _ in client.irun(atoms, use_stress=np.isfinite(structure.volume)))
    except (ConnectionError, SocketClosed) as error:
        raise ConnectionError(
            f"the engine ended the conversation without a word ({error!r}); look at its log"
        ) from error
    except (AssertionError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the engine sent positions that are not finite, or a message out of turn ({error!r}); "
            "look at its log"
        ) from error


def what_is_served(structure):
    """A line on the atoms, and on what the engine's cell means for them."""
    axes = " ".join(axis for axis, periodic in zip("xyz", structure.pbc) if periodic)
    if np.isfinite(structure.volume):
        return f"{len(structure)} atoms, periodic along {axes}"
    kind = (
        f"atoms, periodic along {axes} without a volume:"
        if axes
        else ("free atoms: the engine's cell is ignored and")
    )
    return (
        f"{len(structure)} {kind} the virial is zero; for constant pressure give a start with "
        "Lattice and pbc"
    )


def _connect(unixsocket, host, port):
    try:
        return SocketClient(host=host, port=port, unixsocket=unixsocket)
    except OSError as error:
        at = f"{host}:{port}" if unixsocket is None else actualunixsocketname(unixsocket)
        raise ConnectionError(
            f"nobody listens at {at} ({error}); start the engine first, for instance i-pi "
            "input.xml, with the same address"
        ) from None


class _Protocol(IPIProtocol):
    """i-PI's, with a look at the number of atoms."""

    def __init__(self, socket, n_atoms):
        super().__init__(socket)
        self.n_atoms = n_atoms

    def recvposdata(self):
        cell, inverse, positions = super().recvposdata()
        if len(positions) != self.n_atoms:
            raise ValueError(
                f"the engine has {len(positions)} atoms, but the structure given here has "
                f"{self.n_atoms}; give the one that the engine was started with"
            )
        return cell, inverse, positions
