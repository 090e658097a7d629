"""Bad input through the command line: status 2, one message with value, rule and remedy.

Each case runs in a process of its own, in a folder that must look the same afterwards, within
bounded time and memory.
"""

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mlip.model.file import save_model
from mlip.model.mace.model import NetworkConfig
from mlip.model.potential import untrained

MOST_SECONDS = 30.0  # of one core, beside imports
MOST_BYTES = 1.2e9  # half of it jax
HOPELESS_SECONDS = 300  # of wall time, on a busy machine


def h2(distance):
    """A frame of a hydrogen molecule with a harmonic bond."""
    stretch = distance - 0.74
    energy, force = -31.7 + 17.5 * stretch**2, 35 * stretch
    return (
        '2\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:forces:R:3 '
        f'energy={energy:.5f} pbc="T T T"\n'
        f"H 0 0 0 0 0 {force:.2f}\nH 0 0 {distance:.2f} 0 0 {-force:.2f}\n"
    )


def frames(old="", new=""):
    """Twelve sound frames, but for the third, in which `old` is replaced."""
    texts = [h2(0.69 + 0.02 * index) for index in range(12)]
    assert old in texts[2], old
    texts[2] = texts[2].replace(old, new)
    return "".join(texts)


def cluster(n_atoms):
    """A frame of so many atoms within 3.5 Å, without a cell."""
    places = 3.5 * np.random.default_rng(0).random((n_atoms, 3))
    rows = "".join(f"H {x:.6f} {y:.6f} {z:.6f} 0 0 0\n" for x, y, z in places)
    return f"{n_atoms}\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-1.0\n{rows}"


LAST = h2(0.95)


@dataclass(frozen=True)
class Case:
    """A command line, what its message must say, and files to write first: {name: content}."""

    command: str
    phrase: str
    files: dict
    most_file_bytes: int | None = None  # that a file may have, in place of a full disk


def bad(command, phrase, **files):
    """A case with files; the name's underscore stands for its dot."""
    return Case(command, phrase, {k.replace("_", "."): v for k, v in files.items()})


def data(phrase, content):
    return bad("check bad.xyz", phrase, bad_xyz=content)


def frame(phrase, old, new):
    return data(phrase, frames(old, new))


def every_frame(phrase, old, new):
    return data(phrase, frames().replace(old, new))


FILES = {
    "absent": bad("check absent.xyz", "absent.xyz does not exist; check the path"),
    "empty": data("bad.xyz is of no format that ASE reads", b""),
    "spaces": data("bad.xyz", b"   \n\n  "),
    "empty folder": Case(
        "check folder", "the folder folder is empty of data (folder); give", {"folder/": b""}
    ),
    "folder of junk": Case("check folder", "no format that ASE reads", {"folder/a.q": b"junk"}),
    "device": bad("check /dev/null", "/dev/null is neither a file nor a folder"),
    "random bytes": data("bad.xyz", bytes(range(256)) * 64),
    "NUL bytes": frame("bad.xyz", "H 0 0 0", "H \0 0 0"),
    "UTF-16": data("bad.xyz", frames().encode("utf-16")),
    "Latin-1": data("bad.xyz", frames("energy", "Größe=1 energy").encode("latin-1")),
    "no count": frame("bad.xyz", "2\nLattice", "Lattice"),
    "count is text": frame("bad.xyz", "2\nL", "two\nL"),
    "count is negative": frame("bad.xyz", "2\nL", "-2\nL"),
    "count too large": frame("bad.xyz", "2\nL", "3\nL"),
    "count enormous": frame("bad.xyz", "2\nL", "999999999999\nL"),
    "count of 5000 digits": frame("more than the file holds", "2\nL", f"{'9' * 5000}\nL"),
    "count zero": data(
        "there are no atoms (bad.xyz#0); remove", '0\nenergy=1 pbc="F F F"\n' + frames()
    ),
    "cut in the count": data("bad.xyz", frames() + "2"),
    "cut in the comment": data("bad.xyz", frames() + LAST[:40]),
    "cut in an atom": data("bad.xyz", frames() + LAST[:-12]),
    "cut after an atom": data("bad.xyz", frames() + LAST[: LAST.index("\nH 0 0 0.95")]),
    "bad trajectory": bad("check bad.traj", "bad.traj", bad_traj=b"- of Ulm\0junk"),
    "bad database": bad("check bad.db", "bad.db", bad_db=b"SQLite format 3\0" + b"x" * 99),
    "bad JSON": bad("check bad.json", "bad.json", bad_json='{"1": {"cell": '),
    "bad vasprun": bad("check vasprun.xml", "vasprun.xml", vasprun_xml="<modeling><a>"),
    "bad OUTCAR": bad("check OUTCAR", "OUTCAR", OUTCAR=" vasp.6\n POSITION\n -----\n"),
    "pickle": bad("check bad.traj", "bad.traj", bad_traj=pickle.dumps({"a": np.zeros(3)})),
}
FRAMES = {
    "element X": frame(
        "atomic number 0 is no element (bad.xyz#2); it must lie", "H 0 0 0 ", "X 0 0 0 "
    ),
    "element Qq": frame("bad.xyz cannot be read", "H 0 0 0 ", "Qq 0 0 0 "),
    "position NaN": frame("positions hold nan at (0, 2)", "H 0 0 0 ", "H 0 0 nan "),
    "position infinite": frame("positions hold inf at (0, 2)", "H 0 0 0 ", "H 0 0 inf "),
    "position 1e30": frame("positions reach 1e+30", "H 0 0 0 ", "H 0 0 1e30 "),
    "position 1e300": frame("positions reach 1e+300", "H 0 0 0 ", "H 0 0 1e300 "),
    "position is text": frame("bad.xyz cannot be read", "H 0 0 0 ", "H 0 0 zero "),
    "energy NaN": frame("the energy is nan eV", "energy=-31.69825", "energy=nan"),
    "energy infinite": frame("the energy is inf eV", "energy=-31.69825", "energy=inf"),
    "energy 1e30": frame("the energy is 1e+30 eV", "energy=-31.69825", "energy=1e30"),
    "energy text": frame("'unconverged', which are no numbers", "-31.69825", "unconverged"),
    "energy true": frame("'True', which are no numbers", "energy=-31.69825", "energy=T"),
    "energies of atoms": frame("not one number", "energy=-31.69825", 'energy="-15.8 -15.8"'),
    "forces NaN": frame("forces hold nan at (1, 2)", "0 0 0.35", "0 0 nan"),
    "forces 1e300": frame("forces reach 1e+300", "0 0 0.35", "0 0 1e300"),
    "two force components": every_frame("forces have shape (2, 2)", "forces:R:3", "forces:R:2"),
    "no positions": frame("bad.xyz", "pos:R:3", "place:R:3"),
    "properties cut": frame("atoms 0 and 1 are 0 Å apart", "pos:R:3:forces:R:3", "pos:R"),
    "stress of five": frame("the stress has 5 numbers (", "pbc", 'my_stress="1 1 1 0 0" pbc'),
    "stress NaN": frame("stress hold nan", "pbc", 'my_stress="nan 1 1 0 0 0" pbc'),
    "stress skew": frame("is not symmetric", "pbc", 'my_stress="1 2 3 4 5 6 7 8 9" pbc'),
    "stress text": frame("which are no numbers", "pbc", 'my_stress="high" pbc'),
    "stress of six": frame("expecting special 3x3 matrix", "pbc", 'stress="1 1 1 0 0 0" pbc'),
    "lattice of eight": frame("bad.xyz", "9 0 0 0 9 0 0 0 9", "9 0 0 0 9 0 0 0"),
    "lattice NaN": frame("cell hold nan", "9 0 0 0 9 0", "nan 0 0 0 9 0"),
    "lattice zero": frame("zero or linearly dependent", "9 0 0 0 9 0 0 0 9", "0 0 0 0 0 0 0 0 0"),
    "lattice flat": frame("zero or linearly dependent", "9 0 0 0 9 0", "9 0 0 9 0 0"),
    "lattice 1e30": frame("cell reach 1e+30", "9 0 0 0 9 0", "1e30 0 0 0 9 0"),
    "10^9 pairs": frame(
        "pairs, more than 2e+07", "9 0 0 0 9 0 0 0 9", ".0126 0 0 0 .0126 0 0 0 .0126"
    ),
    "10^8 pairs of a cluster": data("pairs, more than 2e+07", cluster(16_000)),
    "periodic twice": frame("bad.xyz", '"T T T"', '"T T"'),
    "no label": every_frame("has no energy; found the keys E, ", "energy", "E"),
    "two candidates": frame("2 candidates for the energy", "energy", "dft_energy=1 energy"),
    "atoms coincide": frame("atoms 0 and 1 are", "H 0 0 0.73", "H 0 0 0"),
}
SETTINGS = {
    "cutoff negative": bad("check good.xyz --cutoff -3", "cutoff is -3.0 Å; it must be positive"),
    "cutoff zero": bad("check good.xyz --cutoff 0", "cutoff is 0.0 Å; it must be positive"),
    "cutoff NaN": bad("check good.xyz --cutoff nan", "cutoff is nan Å; it must be positive"),
    "cutoff huge": bad("check good.xyz --cutoff 1e9", "it must be positive and at most 20 Å"),
    "cutoff text": bad("check good.xyz --cutoff far", "invalid float value: 'far'"),
    "e0 absent": bad("check good.xyz --e0 atoms.xyz", "atoms.xyz does not exist; check"),
    "e0 element": bad("check good.xyz --e0 Qq=1", "'Qq=1' is not element=energy; write"),
    "e0 NaN": bad("check good.xyz --e0 H=nan", "'H=nan' is not element=energy; write"),
    "e0 missing": bad("check good.xyz --e0 He=-79", "E0 of H is missing"),
    "e0 of molecules": bad("check good.xyz --e0 good.xyz", "has 2 atoms"),
    "against nothing": bad("check good.xyz --against no.xyz", "no.xyz does not exist; check"),
    "against junk": bad("check good.xyz --against bad.xyz", "bad.xyz cannot be", bad_xyz="2\nx\nH"),
    "energy unit": bad("check good.xyz --energy-unit cal", "choose one of eV, Hartree, Ry,"),
    "stress order": bad("check good.xyz --stress-order xx", "write voigt, vasp, or the six"),
    "key absent": bad("check good.xyz --energy-key E", "no energy under the key 'E'; found"),
    "flag misspelt": bad("check good.xyz --cutof 5", "did you mean --cutoff?"),
    "flag without value": bad("check good.xyz --cutoff", "expected one argument"),
    "two files": bad("check good.xyz more.xyz", "unexpected argument 'more.xyz'"),
    "no file": bad("check", "the following arguments are required: data"),
    "no command": bad("", "the following arguments are required: command"),
    "fix exists": bad("check good.xyz --fix good.xyz", "exists already; give another name"),
    "fix is a folder": Case("check good.xyz --fix out --overwrite", "folder", {"out/a": b"x"}),
    "fix below a file": bad("check good.xyz --fix good.xyz/a.xyz", "it is a file where a folder"),
    "fix on a full disk": Case("check good.xyz --fix new.xyz", "free some space", {}, 200),
    "fix in the kernel": bad("check good.xyz --fix /proc/new.xyz", "/proc"),
    "json exists": bad("check good.xyz --json good.xyz", "exists already; give another name"),
    "json is a folder": Case("check good.xyz --overwrite --json out", "folder", {"out/a": b"x"}),
    "json on a full disk": Case("check good.xyz --json new.json", "free some space", {}, 200),
    "model absent": bad("check good.xyz --model no.safetensors", "no.safetensors is no file; give"),
    "name too long": bad(f"check {'x' * 300}.xyz", "give a shorter name"),
}


def toml(phrase, content, flags=""):
    return bad(f"train bad.toml {flags}", phrase, bad_toml=content)


TRAINING = {
    "config absent": bad("train absent.toml", "absent.toml is no file; give a TOML file"),
    "config a folder": Case("train out", "out is no file; give a TOML file", {"out/a": b""}),
    "config not TOML": toml("bad.toml is not valid TOML", "train = "),
    "config not UTF-8": toml("bad.toml is not valid TOML", b"train = '\xff\xfe'"),
    "config empty": toml("train is not given; it has no default", ""),
    "unknown key": toml("did you mean channels?", "train = 'good.xyz'\nchanels = 3"),
    "wrong type": toml("batch_size is 'many'; give an integer", "batch_size = 'many'"),
    "list for text": toml("train is ['a', 'b']; give text", "train = ['a', 'b']"),
    "date for text": toml("give text", "train = 2026-11-21"),
    "value for section": toml("it is a section, written [network]", "network = 3"),
    "section in section": toml("channels is {'a': 3}; give", "[network.channels]\na = 3"),
    "tables": toml("it is a section, written [network]", "[[network]]\nchannels = 3"),
    "seed negative": toml("must be zero or positive", "train = 'good.xyz'\nseed = -1"),
    "batch enormous": toml("less than 2^31", f"train = 'good.xyz'\nbatch_size = {10**30}"),
    "channels 0": bad("train --train good.xyz --channels 0", "channels is 0; it must lie between"),
    "l_max 99": bad("train --train good.xyz --l-max 99", "l_max is 99; it must lie between"),
    "widths": bad("train --train good.xyz --radial-widths 999999999", "radial_widths is"),
    "cutoff": bad("train --train good.xyz --cutoff -2", "cutoff is -2.0 Å; it must be positive"),
    "cutoff NaN": toml("cutoff is nan Å", "train = 'good.xyz'\n[network]\ncutoff = nan"),
    "rate NaN": bad("train --train good.xyz --learning-rate nan", "learning_rate is nan"),
    "weights 0": bad(
        "train --train good.xyz --energy-weight 0 --forces-weight 0 --stress-weight 0 "
        "--stage-two-energy-weight 0",
        "all loss weights are 0; give",
    ),
    "minutes NaN": bad("train --train good.xyz --max-minutes nan", "max_minutes is nan; it must"),
    "dtype": bad("train --train good.xyz --dtype float16", "choose one of float32, float64"),
    "data absent": bad("train --train no.xyz", "no.xyz does not exist; check"),
    "data bad": bad(
        "train --train bad.xyz", "the energy is nan", bad_xyz=frames("-31.69825", "nan")
    ),
    "data two keys": bad(
        "train --train bad.xyz --no-check",
        "2 candidates for the energy",
        bad_xyz=frames("energy", "my_energy=1 energy"),
    ),
    "valid 1.5": bad("train --train good.xyz --valid 1.5", "a validation fraction of 1.5"),
    "valid NaN": bad("train --train good.xyz --valid nan", "a validation fraction of nan"),
    "valid absent": bad("train --train good.xyz --valid no.xyz", "no.xyz does not exist; check"),
    "one frame": bad("train --train bad.xyz", "a validation fraction of 0.1", bad_xyz=h2(0.75)),
    "only atoms": bad(
        "train --train bad.xyz",
        "nothing but isolated atoms; add",
        bad_xyz='1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-13.6 pbc="F F F"\n'
        "H 0 0 0 0 0 0\n",
    ),
    "out is a file": bad("train --train good.xyz --out good.xyz", "it is a file where a folder"),
    "out in the kernel": bad("train --train good.xyz --out /proc/run", "/proc"),
    "no run to resume": bad("train --resume --out no", "no holds no run to resume; start"),
    "run exists": Case(
        "train --train good.xyz --out run",
        "run holds a run already; go on",
        {"run/config.toml": "train = 'good.xyz'", "run/states/1/a": b""},
    ),
    "config of the run damaged": Case(
        "train --resume --out run",
        "config.toml is not valid TOML",
        {"run/config.toml": b"train = 'good", "run/states/1/a": b""},
    ),
    "setting of the run changed": Case(
        "train --resume --out run --channels 8",
        "cannot resume run with channels = 8",
        {"run/config.toml": "train = 'good.xyz'", "run/states/1/a": b""},
    ),
}


def safetensors_file(header, payload=b"", length=None):
    """A file with this header, bytes or a table, whose length may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def model(phrase, content, command="info bad.safetensors"):
    return bad(command, phrase, bad_safetensors=content)


def edited(**changes):
    """Bytes of a model whose card has been changed, with a sha256 that fits it again."""

    def make(folder):
        with safetensors.safe_open(folder / "model.safetensors", framework="numpy") as file:
            card = json.loads(file.metadata()["mlip"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        tensors |= changes.pop("tensors", {})
        tensors = {name: value for name, value in tensors.items() if value is not None}
        card |= changes
        card = {key: value for key, value in card.items() if value is not Ellipsis}
        text = json.dumps(card, sort_keys=True)
        digest = hashlib.sha256(text.encode())
        for name in sorted(tensors):
            value = tensors[name]
            digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
        metadata = {"mlip": text, "sha256": digest.hexdigest()}
        return safetensors.numpy.save(tensors, metadata)

    return make


def cut(size):
    return lambda folder: (folder / "model.safetensors").read_bytes()[:size]


def flipped(place):
    """The model with one bit turned, at an index or where these bytes begin."""

    def make(folder):
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[content.index(place) if isinstance(place, bytes) else place] ^= 4
        return bytes(content)

    return make


DAMAGED = "is truncated, damaged or no safetensors file"
CONFIG = {"cutoff": 5.0, "channels": 2, "l_max": 1, "correlation": 2, "radial_widths": [4]}


def of_mace(**settings):
    """A changed description of the network."""
    return edited(model={"family": "mace", "settings": CONFIG | settings})


MODELS = {
    "absent": bad("info no.safetensors", "no.safetensors is no file; give"),
    "a folder": Case("info out", "out is no file; give", {"out/a": b""}),
    "empty": model(DAMAGED, b""),
    "cut in the length": model(DAMAGED, cut(4)),
    "cut in the header": model(DAMAGED, cut(100)),
    "cut in the payload": model(DAMAGED, cut(-1)),
    "bit of the length": model(DAMAGED, flipped(1)),
    "bit of the card": model("sha256", flipped(b"eV/")),
    "bit of the payload": model("do not match their sha256; copy it again", flipped(-5)),
    "header of 100 GB": model(DAMAGED, safetensors_file({}, length=10**11)),
    "header of 2^63": model(DAMAGED, safetensors_file({}, length=2**63)),
    "header no JSON": model(DAMAGED, safetensors_file(b"{'a': 1}")),
    "header a list": model(DAMAGED, safetensors_file([1, 2])),
    "tensor of 10^18": model(
        DAMAGED,
        safetensors_file({"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}),
    ),
    "no metadata": model("but no model of mlip-jax", safetensors_file({})),
    "card no JSON": model("but no model", safetensors_file({"__metadata__": {"mlip": "{"}})),
    "card a list": model("but no model", safetensors_file({"__metadata__": {"mlip": "[1]"}})),
    "foreign": model(
        "but no model", safetensors_file({"__metadata__": {"mlip": '{"format": "x"}'}})
    ),
    "newer": model("format version 99", edited(format_version=99)),
    "version text": model("format version 'new'", edited(format_version="new")),
    "no species": model("species", edited(species=...)),
    "species Qq": model("'Qq' is no chemical element", edited(species=["Qq"])),
    "species number": model("species", edited(species=14)),
    "species twice": model("give ascending atomic numbers", edited(species=["H", "H"])),
    "e0 short": model("e0 is [", edited(e0=[])),
    "e0 NaN": model("e0 is [nan]", edited(e0=[float("nan")])),
    "e0 text": model("e0", edited(e0="low")),
    "scale missing": model("scale", edited(scale=...)),
    "no model": model("model is not given", edited(model=...)),
    "model text": model("model is 'MACE'; give a table", edited(model="MACE")),
    "family unknown": model("the family 'GAP' of its network", edited(model={"family": "GAP"})),
    "settings text": model(
        "which is no table", edited(model={"family": "mace", "settings": "default"})
    ),
    "settings key unknown": model("attention", of_mace(attention=True)),
    "settings l_max 99": model("l_max is 99; it must lie", of_mace(l_max=99)),
    "settings channels text": model("channels", of_mace(channels="many")),
    "settings channels 10^9": model("channels is", of_mace(channels=10**9)),
    "settings other": model("has shape", of_mace(channels=3)),
    "own network": model(
        "is mine:Net, and no code that a file names is imported; give the class",
        edited(model={"family": "flax", "class": "mine:Net"}),
    ),
    "terms unknown": model("'d3' is no setting", edited(terms={"d3": True})),
    "older settings text": model(
        "'MACE', which is no table", edited(format_version=2, model=..., config="MACE")
    ),
    "class unknown": bad(
        "info model.safetensors --model-class nowhere:Net", "'nowhere:Net' cannot be imported"
    ),
    "neighbours 0": model("average_neighbors is 0", edited(average_neighbors=0)),
    "neighbours text": model("average_neighbors", edited(average_neighbors="some")),
    "dtype": model("choose one of float32, float64", edited(dtype="float16")),
    "training": model("training", edited(training=3)),
    "tensor missing": model(
        "the tensor embedding has shape None", edited(tensors={"embedding": None})
    ),
    "tensor more": model("the tensor extra has shape", edited(tensors={"extra": np.zeros(3)})),
    "tensor of integers": model("embedding", edited(tensors={"embedding": np.ones((1, 2), int)})),
    "tensor NaN": model("embedding", edited(tensors={"embedding": np.full((1, 2), np.nan, "f4")})),
    "pickle": model(DAMAGED, pickle.dumps({"weights": np.zeros(9)})),
    "zip": model(DAMAGED, b"PK\3\4" + b"x" * 99),
    "info atoms": bad("info model.safetensors --atoms -5", "atoms is -5; it must be positive"),
    "info many": bad("info model.safetensors --atoms 999999999999", "32-bit indices"),
    "info density": bad("info model.safetensors --atoms 9 --density nan", "density is nan; it"),
    "evaluate absent": bad("evaluate model.safetensors no.xyz", "no.xyz does not exist; check"),
    "evaluate labels": bad(
        "evaluate model.safetensors bad.xyz",
        "has no energy; found",
        bad_xyz=frames().replace("energy", "E"),
    ),
    "evaluate element": bad(
        "evaluate model.safetensors bad.xyz --unfolded",
        "holds He, which this potential was not trained on; it knows H",
        bad_xyz=frames("H 0 0 0 ", "He 0 0 0 "),
    ),
    "evaluate dtype": bad("evaluate model.safetensors good.xyz --dtype half", "choose one of"),
    "init species": bad("init --out new --species H,Qq", "'Qq' is no chemical element; write"),
    "init nothing": bad("init --out new --species=", "'' is no chemical element; write"),
    "init channels": bad(
        "init --out new --species H --channels 99999", "channels is 99999; it must lie"
    ),
    "init neighbours": bad(
        "init --out new --species H --average-neighbors nan", "average_neighbors is nan"
    ),
    "init seed": bad(
        "init --out new --species H --seed -1", "seed is -1; it must be zero or positive"
    ),
    "init dtype": bad(
        "init --out new --species H --dtype float8", "choose one of float32, float64"
    ),
    "init exists": bad(
        "init --species H --out model.safetensors", "exists already; give another name"
    ),
    "import exists": bad(
        "import-mace good.model good.model", "exists already; give", good_model=b"precious"
    ),
    "init folder": Case("init --species H --overwrite --out out", "folder", {"out/a": b"x"}),
    "init full disk": Case("init --species H --out new.safetensors", "free some space", {}, 900),
    "selftest": bad("selftest now", "unexpected argument 'now'"),
    "quickstart": bad("quickstart --minutes nan", "max_minutes is nan; it must be positive"),
}
USES = {
    "md absent": bad("md model.safetensors no.xyz", "no.xyz does not exist; check"),
    "md model": bad("md good.xyz good.xyz", DAMAGED),
    "md timestep": bad("md model.safetensors good.xyz --timestep -1", "timestep is -1"),
    "md ensemble": bad("md model.safetensors good.xyz --ensemble nph", "ensemble is 'nph'; choose"),
    "md temperature": bad("md model.safetensors good.xyz --temperature nan", "temperature"),
    "md coincident": bad(
        "md model.safetensors one.xyz", "atoms 0 and 1 are 0 Å apart; remove", one_xyz=h2(0.0)
    ),
    "md element": bad(
        "md model.safetensors one.xyz",
        "holds He, which this potential was not trained on",
        one_xyz=h2(0.75).replace("H 0", "He 0"),
    ),
    "md resume": bad("md model.safetensors good.xyz --resume --out none", "no simulation"),
    "md report": bad(
        "md model.safetensors good.xyz --out runs",
        "is the report of another kind (training); give another --out",
        **{"runs/report_json": '{"kind": "training"}'},
    ),
    "relax absent": bad("relax model.safetensors no.xyz", "no.xyz does not exist; check"),
    "relax cell": bad("relax model.safetensors good.xyz --cell cubic", "cell is 'cubic'; choose"),
    "relax strain": bad("relax model.safetensors good.xyz --strain xx", "strain"),
    "relax out": bad("relax model.safetensors good.xyz --out out.cif", "out.cif"),
    "serve port": bad("serve model.safetensors one.xyz --port 99999", "port", one_xyz=h2(0.74)),
    "serve frames": bad("serve model.safetensors good.xyz --port 31999", "12"),
    "serve nowhere": bad("serve model.safetensors one.xyz", "no one address", one_xyz=h2(0.74)),
    "report nothing": bad("report none", "none holds no config.toml; give the folder of a run"),
    "report file": bad("report good.xyz", "good.xyz holds no config.toml; give the folder"),
    "compare one": bad("compare none", "there is only one run; name two or more to compare"),
    "compare none": bad("compare none nothing", "none holds no report.json; give the folder"),
    "compare broken": bad(
        "compare runs runs", "is not the report of a training run", **{"runs/report_json": "{"}
    ),
    "compare place": bad(
        "compare a b --out runs", "give another --out", **{"runs/report_json": "[1]"}
    ),
    "evaluate place": bad(
        "evaluate model.safetensors good.xyz --out runs",
        "is the report of another kind (file of others); give another --out",
        **{"runs/report_json": "no JSON"},
    ),
}
TABLES = {
    "files": FILES,
    "frames": FRAMES,
    "settings": SETTINGS,
    "training": TRAINING,
    "models": MODELS,
    "uses": USES,
}
CASES = {f"{table} {name}": case for table, cases in TABLES.items() for name, case in cases.items()}


@pytest.fixture(scope="module")
def good_model(tmp_path_factory):
    """Bytes of a small model of hydrogen."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    network = NetworkConfig(channels=2, l_max=1, correlation=2, radial_widths=(4,))
    save_model(untrained(network, ["H"]), path)
    return path.read_bytes()


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    message: str
    seconds: float  # of processor time
    peak_bytes: int


@pytest.fixture(scope="module")
def server():
    """A process that runs commands; see `fork_server.py`."""
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("fork_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    yield process
    process.communicate()


def run(server, folder, case):
    """The outcome of a case in a process of its own."""
    output = folder.with_name(f"{folder.name}.out")
    limited = case.most_file_bytes is not None
    job = {
        "words": case.command.split(),
        "folder": str(folder),
        "output": os.devnull if limited else str(output),
        "seconds": HOPELESS_SECONDS,
        "limit": case.most_file_bytes,
    }
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, f"the server ended with status {server.wait()}"
    return Outcome(out="" if limited else output.read_text(), **json.loads(answer))


def fill(folder, case, good_model):
    """Write the files of a case, beside sound data and a sound model."""
    files = {"good.xyz": frames(), "model.safetensors": good_model, **case.files}
    for name, content in files.items():
        if name.endswith("/"):
            (folder / name).mkdir()
            continue
        content = content(folder) if callable(content) else content
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(Path(folder).rglob("*"))
    }


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_with_status_2_and_a_message(server, tmp_path, good_model, name):
    case = CASES[name]
    fill(tmp_path, case, good_model)
    before = contents(tmp_path)
    outcome = run(server, tmp_path, case)
    text = outcome.message
    assert outcome.status == 2, text + outcome.out
    assert "Traceback" not in text
    assert case.phrase in text, text
    assert sum(line.startswith("mlip") for line in text.splitlines()) == 1, text
    assert "mlip: error" in text or ": error: " in text or ";" in text, text
    assert contents(tmp_path) == before
    assert outcome.seconds < MOST_SECONDS
    assert outcome.peak_bytes < MOST_BYTES


def test_the_sound_data_of_the_cases_is_sound(server, tmp_path, good_model):
    fill(tmp_path, bad("", ""), good_model)
    assert run(server, tmp_path, bad("check good.xyz", "")).status == 0
    assert run(server, tmp_path, bad("info model.safetensors", "")).status == 0


def test_debug_shows_the_traceback(server, tmp_path):
    outcome = run(server, tmp_path, bad("check absent.xyz --debug", ""))
    assert outcome.status == 1
    assert "Traceback" in outcome.message
    assert "FileNotFoundError: absent.xyz does not exist" in outcome.message
