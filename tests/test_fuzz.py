"""Our own parsers under random input: each gives what it reads, or an error that helps.

MLIP_FUZZ_EXAMPLES sets how many inputs each test tries.
"""

import datetime
import json
import os
import re
import tempfile
from dataclasses import fields
from pathlib import Path

import ase
import numpy as np
import pytest
import safetensors.numpy
from ase.calculators.singlepoint import SinglePointCalculator

from mlip import config as settings
from mlip.data.checks.doctor import check
from mlip.data.dataset import read
from mlip.data.labels import LabelKeys, _frame, choose_key, structure_of
from mlip.data.quantities import QUANTITIES
from mlip.data.structure import Structure
from mlip.model.file import _digest, load_model, save_model
from mlip.model.mace.model import NetworkConfig
from mlip.model.potential import Potential, untrained
from mlip.relaxation.results import RelaxationConfig
from mlip.simulation.setup import DynamicsConfig
from mlip.training.setup import TrainConfig

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies
fuzz = hypothesis.settings(
    max_examples=int(os.environ.get("MLIP_FUZZ_EXAMPLES", "60")),
    derandomize="MLIP_FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


def result_or_help(function, *arguments):
    """What a function gives, or None where it refuses with a rule and a remedy."""
    try:
        return function(*arguments)
    except (ValueError, FileNotFoundError) as error:
        refusal = error
    # Python's own errors have neither.
    assert ";" in str(refusal) or "belongs in" in str(refusal), repr(refusal)
    return None


# Settings ------------------------------------------------------------------------------------

CONFIGS = (TrainConfig, DynamicsConfig, RelaxationConfig, NetworkConfig)
scalars = st.one_of(
    st.booleans(),
    st.integers(),
    st.integers(-1, 5),
    st.floats(),
    st.floats(0, 2),
    st.text(max_size=8),
    st.dates(),
    st.times(),
    st.datetimes(),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def default_of(field):
    known = not isinstance(field.default, type(settings.MISSING))
    return st.just(field.default) if known and field.default is not None else values


@st.composite
def tables(draw, cls):
    """A table for a dataclass with some of its settings, most with values that are not theirs."""
    known = {name: (section, field) for name, (section, field) in settings.leaves(cls).items()}
    table = {"train": "data.xyz"} if cls is TrainConfig else {}
    for name in draw(st.lists(st.sampled_from(sorted(known)), max_size=4)):
        section, field = known[name]
        place = table.setdefault(section, {}) if section else table
        if isinstance(place, dict):
            place[name] = draw(default_of(field) | values)
    if draw(st.integers(0, 9)) == 0:
        table[draw(st.text(max_size=9) | st.sampled_from([f.name for f in fields(cls)]))] = draw(
            values
        )
    return table


@fuzz
@hypothesis.given(st.sampled_from(CONFIGS).flatmap(lambda c: st.tuples(st.just(c), tables(c))))
@hypothesis.example((TrainConfig, {"train": "a\rb\x7f\x00c.xyz"}))
@hypothesis.example((TrainConfig, {"train": datetime.date(2000, 1, 1)}))
@hypothesis.example((TrainConfig, {"train": "of another encoding \udce9.xyz"}))
def test_settings_are_understood_and_written_back_or_refused(drawn):
    cls, table = drawn
    config = result_or_help(settings.from_table, cls, table)
    if config is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(settings.to_toml(config), encoding="utf-8")
        assert settings.to_toml(settings.from_toml(cls, path)) == settings.to_toml(config)


@fuzz
@hypothesis.given(
    st.binary(max_size=60)
    | st.text("abc_=[]{}\"'\n#.,0123456789+-eE: \\", max_size=60).map(str.encode)
)
def test_toml_files_are_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(content)
        result_or_help(settings.from_toml, TrainConfig, path)


# Labels --------------------------------------------------------------------------------------

names = st.sampled_from(
    ["energy", "REF_energy", "free_energy", "Energy", "forces", "force", "dft_forces", "stress"]
    + ["virial", "virials", "REF_stress", "config_type", "kinetic_energy", "energy_unit"]
) | st.text(min_size=1, max_size=6)
dtypes = st.sampled_from([float, int, bool, complex, str, object, np.float32])


@st.composite
def arrays(draw, shapes):
    array = np.array(draw(st.floats() | st.integers(-9, 9))) * np.ones(draw(shapes))
    with np.errstate(all="ignore"):
        return array.astype(draw(dtypes))


def per_atom(n_atoms):
    return arrays(st.sampled_from([(n_atoms,), (n_atoms, 1), (n_atoms, 3), (n_atoms, 3, 1)]))


anything = st.one_of(
    st.floats(),
    st.integers(),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
    st.lists(st.floats() | st.text(max_size=2), max_size=9),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    arrays(st.sampled_from([(), (1,), (6,), (9,), (3, 3), (2, 3), (0,), (1, 6)])),
)


@st.composite
def images(draw):
    """`ase.Atoms` of up to three atoms with labels of every kind and shape."""
    count = draw(st.integers(0, 3))
    coordinate = st.floats(-1e3, 1e3) | st.floats()
    positions = [[draw(coordinate) for _ in range(3)] for _ in range(count)]
    atoms = ase.Atoms(
        numbers=[draw(st.integers(-1, 130)) for _ in range(count)],
        positions=np.array(positions).reshape(-1, 3),
        cell=[draw(coordinate) for _ in range(3)],
        pbc=[draw(st.booleans()) for _ in range(3)],
    )
    atoms.info |= draw(st.dictionaries(names, anything, max_size=3))
    for name, array in draw(st.dictionaries(names, per_atom(count), max_size=2)).items():
        if name not in ("numbers", "positions"):
            atoms.arrays[name] = array
    if draw(st.booleans()):
        atoms.calc = SinglePointCalculator(atoms)
        atoms.calc.results = draw(st.dictionaries(names, anything | per_atom(count), max_size=3))
    return atoms


@fuzz
@hypothesis.given(st.lists(images(), max_size=2), names | st.just("auto"), names | st.just("auto"))
def test_labels_are_found_or_refused(drawn, energy_key, stress_key):
    keys = LabelKeys(energy_key=energy_key, stress_key=stress_key)
    path = Path("data.xyz")
    frames = [_frame(path, index, atoms) for index, atoms in enumerate(drawn)]
    for kind in QUANTITIES:
        wanted = getattr(keys, f"{kind}_key")
        key = result_or_help(choose_key, kind, wanted, frames, path)
        for frame in frames:
            structure = result_or_help(structure_of, frame, {kind: key}, keys)
            if structure is not None:
                assert isinstance(structure, Structure)
                value = getattr(structure, kind)
                assert value is None or np.isfinite(value).all()


@pytest.mark.parametrize("value", [1 + 2j, np.array([True]), "1 eV"])
def test_what_is_no_real_number_is_no_label(value):
    frame = _frame(Path("data.xyz"), 0, ase.Atoms("H", info={"energy": value}))
    with pytest.raises(ValueError, match="which are no numbers"):
        structure_of(frame, {"energy": "energy"})


SOUND = "".join(
    f'2\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:forces:R:3 energy={-31 - n} '
    f'stress="0.1 0 0 0 0.1 0 0 0 0.1" pbc="T T T" config_type=a\n'
    f"H 0 0 0 0 0 {n}\nH 0 0 0.7{n} 0 0 {-n}\n"
    for n in range(3)
)
pieces = st.one_of(
    st.sampled_from(["=", '"', " ", "\n", "nan", "inf", "1e400", "-", "T", "[", "]", "{", "}"]),
    st.sampled_from([" energy=", ' stress="1 2"', " forces=3", ":R:3", ":L:1", ":S:1", "2\n", "0"]),
    st.text(max_size=4),
)


@fuzz
@hypothesis.given(st.lists(st.tuples(st.integers(0, len(SOUND)), st.integers(0, 20), pieces),
                           min_size=1, max_size=3))  # fmt: skip
def test_damaged_frames_are_read_or_refused(edits):
    text = SOUND
    for place, length, piece in edits:
        text = text[:place] + piece + text[place + length :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.xyz"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        structures = result_or_help(read, path)
        report = check(path)
        assert all(finding.remedy for finding in report.findings)
        json.dumps(report.table(), allow_nan=False)
        if structures is None:
            assert report.graded("error")


# Model files ---------------------------------------------------------------------------------

SMALL = NetworkConfig(channels=2, l_max=1, correlation=2, radial_widths=(4,))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(untrained(SMALL, ["H", "O"]), path)
    return path


@fuzz
@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 2500), st.binary(max_size=6)), max_size=4), st.integers(0, 9)
)
def test_damaged_model_files_are_refused(model_file, edits, cut):
    content = model_file.read_bytes()
    whole = content
    for place, piece in edits:
        content = content[:place] + piece + content[place + len(piece) :]
    content = content if cut < 8 else content[: len(content) * (cut - 7) // 3]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        potential = result_or_help(load_model, path)
        if potential is not None and content != whole:
            # Changed where it does not matter, as in white space.
            np.testing.assert_equal(potential.parameters, load_model(model_file).parameters)


@fuzz
@hypothesis.given(st.data())
def test_cards_of_other_models_are_understood_or_refused(model_file, data):
    with safetensors.safe_open(model_file, framework="numpy") as file:
        card = json.loads(file.metadata()["mlip"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for _ in range(data.draw(st.integers(1, 3))):
        place = card
        inner = card.get("model")
        if data.draw(st.booleans()) and isinstance(inner, dict):
            inside = data.draw(st.booleans()) and isinstance(inner.get("settings"), dict)
            place = inner["settings"] if inside else inner
        name = data.draw(st.sampled_from([*sorted(place), "species"]) | st.text(max_size=4))
        if data.draw(st.integers(0, 4)) == 0:
            place.pop(name, None)
        else:
            place[name] = data.draw(json_values)
    text = json.dumps(card)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        metadata = {"mlip": text, "sha256": _digest(text, tensors)}
        path.write_bytes(safetensors.numpy.save(tensors, metadata))
        potential = result_or_help(load_model, path)
        assert potential is None or isinstance(potential, Potential)


@fuzz
@hypothesis.given(st.dictionaries(st.sampled_from(["mlip", "sha256", "x"]), st.text(max_size=30)))
def test_files_of_other_programs_are_refused(metadata):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(safetensors.numpy.save({"w": np.ones(3)}, metadata))
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_model(path)
