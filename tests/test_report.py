"""Reports say what is true, hold all they need, and can be read."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import ase.build
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.eos import EquationOfState

from mlip.cli import main
from mlip.data.checks.doctor import check
from mlip.data.checks.findings import Report
from mlip.data.dataset import read
from mlip.data.structure import Structure, from_ase, to_ase
from mlip.model.potential import Prediction
from mlip.quickstart import data_file
from mlip.report import figures, probes
from mlip.report.compare import compare
from mlip.report.dynamics import (
    PANELS,
    radial_distribution,
    report_dynamics,
    squared_displacement,
    thermo_section,
)
from mlip.report.fit import report_evaluation, report_training
from mlip.report.page import Section, Table, plain, to_html
from mlip.simulation.dynamics import run
from mlip.simulation.setup import DynamicsConfig, Start

LARGEST = 3_000_000  # bytes of a page
EPOCH_KEYS = ("energy_rmse_mev_per_atom", "forces_rmse_mev_per_A", "stress_rmse_mev_per_A3")
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Counts tags, sees that they are closed, and collects what would be fetched."""

    def __init__(self, path):
        super().__init__()
        self.open, self.counts, self.fetched, self.text = [], {}, [], path.read_text()
        self.feed(self.text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not value.startswith(("#", "data:")):
                self.fetched.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def assert_stands_alone(path):
    page = Page(path)
    assert not page.fetched
    assert not {"script", "link", "iframe", "img"} & set(page.counts)
    assert "@import" not in page.text
    assert not re.search(r"url\((?!#)", page.text)
    assert path.stat().st_size < LARGEST
    ids = re.findall(r'\bid="([^"]+)"', page.text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page.text)) <= set(ids)
    return page


@pytest.fixture(scope="module")
def training_report(silicon_run):
    report_training(silicon_run)
    return silicon_run


def test_a_training_report_has_every_figure_and_fetches_nothing(training_report):
    page = assert_stands_alone(training_report / "report.html")
    report = json.loads((training_report / "report.json").read_text())
    titles = (
        "Data, Learning curves, Errors, Parity, Errors against force, Worst frames, Model, Dimers, "
        "Self-checks, Dynamics, Energy and volume, Speed on this machine, Settings and versions"
    )
    assert list(report["sections"]) == titles.split(", ")
    # Learning curves and parity of three properties, by force, Si-Si twice, drift, volumes.
    assert page.counts["svg"] == 3 + 6 + 1 + 2 + 1 + 1
    assert page.counts["figure"] == page.counts["figcaption"] == 7


def test_a_training_report_says_what_the_run_says(training_report):
    report = json.loads((training_report / "report.json").read_text())
    rows = [json.loads(line) for line in (training_report / "metrics.jsonl").open()]
    best = next(row for row in reversed(rows) if row["best"])
    errors = report["sections"]["Errors"]
    for key in EPOCH_KEYS:
        assert math.isclose(errors[key], best[f"valid_{key}"], rel_tol=2e-3)
    worst = report["sections"]["Worst frames"]["frames"]
    assert len(worst) == 10
    assert [row[4] for row in worst] == sorted((row[4] for row in worst), reverse=True)
    checks = report["sections"]["Self-checks"]
    assert len(checks) == 7
    assert all(value < 1e-5 for value, _ in checks.values())
    assert len(report["sections"]["Dynamics"]["time_ps"]) > 10
    facts = report["sections"]["Settings and versions"]["facts"]
    assert facts["training seed"] == 0
    assert len(facts["training train sha256"]) == 64
    assert "max_epochs = 30" in report["sections"]["Settings and versions"]["settings"]


def test_texts_of_others_cannot_break_a_page(tmp_path):
    name = '<script>alert("1")</script>'
    sections = [Section(name, [name, Table((name,), [[name]])])]
    path = tmp_path / "page.html"
    path.write_text(to_html(name, name, {name: 1.0}, sections))
    assert "script" not in Page(path).counts


def test_numbers_that_are_not_finite_are_null_in_json():
    assert plain({"a": np.array([1.0, np.nan]), "b": (np.int64(3), math.inf)}) == {
        "a": [1.0, None],
        "b": [3, None],
    }


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MEASURE = """<script>addEventListener("load", () => {
const boxes = [...document.querySelectorAll("svg")].map((e) => e.getBoundingClientRect());
const root = document.documentElement;
document.title = JSON.stringify({wide: root.scrollWidth - root.clientWidth,
seen: boxes.filter((b) => b.width > 150 && b.height > 80).length,
fetched: performance.getEntriesByType("resource").filter((e) => !e.name.startsWith("data:")).length
}); });</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look at pages with")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_every_figure_within_the_window(training_report, tmp_path, width):
    text = (training_report / "report.html").read_text()
    (tmp_path / "page.html").write_text(text.replace("</body>", MEASURE + "</body>"))
    flags = "--headless=new --no-sandbox --disable-gpu --virtual-time-budget=5000".split()
    flags += [f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}"]
    address = (tmp_path / "page.html").as_uri()
    shown = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=120
    )
    found = json.loads(re.search(r"<title>(.*?)</title>", shown.stdout)[1])
    assert found == {"wide": 0, "seen": text.count("<svg "), "fetched": 0}


# Probes against what is known ----------------------------------------------------------------


class Predictor:
    """ASE's EMT as a potential; `push` is added to the force on the first atom."""

    def __init__(self, push=0.0):
        self.push = push

    def predict(self, structures):
        return [self.one(structure) for structure in structures]

    def one(self, structure):
        atoms = to_ase(replace(structure, energy=None, forces=None, stress=None))
        atoms.calc = EMT()
        forces = atoms.get_forces()
        forces[0, 0] += self.push
        stress = atoms.get_stress(voigt=False)
        return Prediction(
            atoms.get_potential_energy(), atoms.get_potential_energies(), forces, stress
        )


def copper(scale=1.0):
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.set_cell(scale * atoms.cell[:], scale_atoms=True)
    return from_ase(atoms)


def test_the_bulk_modulus_is_ases():
    crystal = copper()
    volume, energy, facts = probes.volumes(Predictor(), crystal)
    found = EquationOfState(4 * volume, 4 * energy, eos="birchmurnaghan").fit()
    np.testing.assert_allclose(4 * facts["volume_A3_per_atom"], found[0], rtol=1e-3)
    np.testing.assert_allclose(facts["bulk_modulus_GPa"], found[2] / ase.units.GPa, rtol=0.02)


def test_a_crystal_without_a_minimum_in_the_range_is_told():
    assert "no minimum" in probes.volumes(Predictor(), copper(1.4))[2]["reason"]


def test_self_checks_pass_for_a_true_potential_and_name_what_is_broken():
    good = probes.self_checks(Predictor(), copper())
    assert all(value < 1e-6 for value, _ in good.values())
    broken = probes.self_checks(Predictor(push=0.1), copper())
    assert broken["sum of the forces"][0] > 0.05
    assert broken["forces after turning all"][0] > 0.01
    assert broken["energy after turning all"][0] < 1e-9


def test_dimers_repel_and_end_smoothly_with_zbl(silicon_potential):
    (name,), (dimer,) = zip(*probes.dimers(silicon_potential, [(14, 14)]).items())
    assert name == "Si-Si"
    assert dimer.distances[0] < 1.0
    assert dimer.energies[0] > 5.0
    assert dimer.energies[0] > dimer.energies[10]
    assert np.abs(dimer.forces[-5:]).max() == 0
    inside = dimer.around < silicon_potential.cutoff
    np.testing.assert_allclose(dimer.forces[inside][-1], 0, rtol=0, atol=1e-4)


def test_distances_of_an_ideal_gas_are_those_of_its_density():
    rng = np.random.default_rng(0)
    frames = [
        Structure(np.repeat([1, 8], 150), rng.uniform(0, 18, (300, 3)), 18 * np.eye(3), np.ones(3))
        for _ in range(6)
    ]
    curves, periodic = radial_distribution(frames)
    assert periodic
    assert set(curves) == {"H-H", "H-O", "O-O"}
    for r, g in curves.values():
        far = r > 3
        np.testing.assert_allclose(g[far].mean(), 1, rtol=0, atol=0.02)


def test_distances_of_a_molecule_are_a_probability():
    structure = read(data_file("ethanol_test_300K.xyz"))[0]
    curves, periodic = radial_distribution([structure])
    assert not periodic
    for r, p in curves.values():
        np.testing.assert_allclose(p.sum() * (r[1] - r[0]), 1, rtol=1e-9)


def test_displacements_of_free_atoms_grow_with_the_square_of_time():
    rng = np.random.default_rng(1)
    start, velocity = rng.normal(size=(2, 8, 3))
    velocity -= velocity.mean(axis=0)
    drift = np.array([3.0, 0.0, 0.0])  # of all together, which does not count
    frames = [
        Structure(np.full(8, 6), 5 * start + t * (velocity + drift), np.zeros((3, 3)), np.zeros(3))
        for t in 0.1 * np.arange(21)
    ]
    times, curves = squared_displacement(frames, spacing=0.1)
    expected = (velocity**2).sum(axis=1).mean() * times**2
    np.testing.assert_allclose(curves["C"], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(times[-1], 1.0, rtol=1e-12)


# Evaluation, dynamics, comparison ------------------------------------------------------------


def test_an_evaluation_report_holds_the_errors(silicon_potential, tmp_path):
    looked = check(data_file("silicon_test.xyz"), e0=None)
    frames = looked.structures
    predictions = silicon_potential.predict(frames)
    report_evaluation(tmp_path, "model", looked, silicon_potential, predictions)
    assert_stands_alone(tmp_path / "report.html")
    wanted = {"Dimers", "Self-checks", "Dynamics", "Energy and volume", "Speed on this machine"}
    assert wanted < set(json.loads((tmp_path / "report.json").read_text())["sections"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sections"]["Data"]["summary"]["frames"] == len(frames)
    error = 1000 * np.concatenate(
        [(p.forces - f.forces).ravel() for p, f in zip(predictions, frames)]
    )
    np.testing.assert_allclose(
        report["sections"]["Errors"]["forces_rmse_mev_per_A"], np.sqrt((error**2).mean()), rtol=1e-6
    )
    bins = report["sections"]["Errors against force"]["bins"]
    assert sum(row[2] for row in bins) == sum(map(len, frames))


@pytest.mark.parametrize("missing", ["forces", "energy", "stress", "sizes of forces"])
def test_frames_may_lack_labels(silicon_potential, tmp_path, missing):
    frames = read(data_file("silicon_test.xyz"))[:2]
    if missing == "sizes of forces":
        frames = [replace(frame, forces=np.ones_like(frame.forces)) for frame in frames[:1]]
    else:
        frames = [replace(frame, **{missing: None}) for frame in frames]
    looked = Report(str(data_file("silicon_test.xyz")), {}, (), [], frames)
    report_evaluation(
        tmp_path,
        "model",
        looked,
        silicon_potential,
        silicon_potential.predict(frames),
        probe=False,
    )
    page = assert_stands_alone(tmp_path / "report.html")
    assert page.counts["svg"] == (6 if missing == "sizes of forces" else 4 + (missing != "forces"))


def test_long_runs_make_no_large_pages():
    row = {f"{part}_{key}": 1.0 for part in ("train", "valid") for key in EPOCH_KEYS}
    rows = [row | {"seconds": float(n)} for n in range(20_000)]
    images = figures.learning_curves({"a": rows, "_b $": rows})
    assert sum(len(figures.to_svg(image)) for image in images) < LARGEST / 3
    thermo = [np.random.default_rng(n).normal(size=(20_000, 8)) for n in range(20)]
    (figure,) = thermo_section(thermo).parts
    assert sum(len(figures.to_svg(image)) for image in figure.images) < LARGEST


def test_a_report_of_dynamics_holds_its_curves(silicon_potential, tmp_path):
    config = DynamicsConfig(
        temperature=(200.0, 400.0), steps=63, save_every=5, log_every=3, timestep=1.0
    )
    found = run(silicon_potential, from_ase(ase.build.bulk("Si", cubic=True)), config, out=tmp_path)
    start = data_file("silicon_test.xyz")
    report_dynamics(tmp_path, start, silicon_potential, config, found, seconds=2.0)
    page = assert_stands_alone(tmp_path / "report.html")
    assert page.counts["svg"] == 4 + 1 + 1  # the volume does not change
    sections = json.loads((tmp_path / "report.json").read_text())["sections"]
    np.testing.assert_allclose(
        sections["Thermodynamics"]["001"]["temperature_K"],
        found[1].column("temperature_K"),
        rtol=1e-6,
    )
    assert [row[0][:3] for row in sections["Systems"]["rows"]] == ["000", "001"]
    # The frame of step 63 stands out of the row.
    np.testing.assert_allclose(sections["Displacements"]["time_ps"][-1], 0.03, rtol=1e-9)
    assert sections["Speed"]["steps/s"] == 31.5
    assert set(sections["Distances"]["pairs"]) == {"Si-Si"}


def test_a_report_of_dynamics_follows_the_volume_and_says_who_stopped(silicon_potential, tmp_path):
    crystal = from_ase(ase.build.bulk("Si", cubic=True))
    rng = np.random.default_rng(0)
    rattled = replace(crystal, positions=crystal.positions + rng.normal(0, 0.2, (8, 3)))
    cold = np.full((8, 3), 3e-4)  # Å/fs, about 24 K
    cold[0] *= -7
    config = DynamicsConfig(
        ensemble="npt",
        cell_motion="full",
        steps=40_000,  # of which few are taken
        temperature=(25.0,),
        save_every=2,
        trajectory="traj",
        timestep=0.5,
        max_temperature=100.0,
    )
    starts = [Start(crystal, cold), Start(rattled, cold)]
    found = run(silicon_potential, starts, replace(config, steps=40), out=tmp_path)
    assert "above max_temperature" in found[1].stopped
    start = data_file("silicon_test.xyz")
    report_dynamics(tmp_path, start, silicon_potential, config, found, seconds=1.0)
    page = assert_stands_alone(tmp_path / "report.html")
    assert page.counts["svg"] == len(PANELS) + 1 + 1
    sections = json.loads((tmp_path / "report.json").read_text())["sections"]
    assert sections["Systems"]["rows"][1][-1] == found[1].stopped
    assert np.ptp(sections["Thermodynamics"]["000"]["volume_A3"]) > 0
    # Frames are thinned by the steps that were taken, not by those that were asked for.
    np.testing.assert_allclose(sections["Displacements"]["time_ps"][-1], 0.01, rtol=1e-9)


def test_runs_are_compared_by_errors_and_settings_that_differ(training_report, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    report = json.loads((training_report / "report.json").read_text())
    report["sections"]["Errors"]["forces_rmse_mev_per_A"] = 1.25
    text = report["sections"]["Settings and versions"]["settings"]
    report["sections"]["Settings and versions"]["settings"] = text.replace(
        "channels = 4", "channels = 5"
    )
    (other / "report.json").write_text(json.dumps(report))
    names, rows, _ = compare([training_report, other])
    assert names == ["run", "other"]
    assert rows["forces RMSE, meV/Å"][1] == 1.25
    assert rows["setting network.channels"] == ["4", "5"]
    assert not any("layers" in key for key in rows)
    assert main(["compare", str(training_report), str(other), "--out", str(tmp_path / "out")]) == 0
    assert "setting network.channels" in capsys.readouterr().out
    page = assert_stands_alone(tmp_path / "out" / "report.html")
    assert page.counts["svg"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no report.json"), ("{", "is not the report"), ("[]", "is not the report")],
)
def test_what_cannot_be_compared_is_refused(training_report, tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert main(["compare", str(training_report), str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_report_of_no_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no config.toml; give the folder of a run" in capsys.readouterr().err


def test_a_section_without_dynamics_tells_why(silicon_potential):
    close = Structure([14, 14], [[0, 0, 0], [0.3, 0, 0]], np.zeros((3, 3)), np.zeros(3))
    times, _, facts = probes.short_run(silicon_potential, close)
    assert times is None
    assert "0.3" in facts["reason"]


def test_a_report_of_another_kind_is_not_replaced(training_report, tmp_path, capsys):
    arguments = [str(training_report)] * 2
    assert main(["compare", *arguments, "--out", str(training_report)]) == 2
    assert "is the report of another kind (training); give another --out" in capsys.readouterr().err


def test_a_report_on_other_data_than_that_of_the_run_is_refused(training_report, tmp_path, capsys):
    for name in ("config.toml", "model.safetensors", "metrics.jsonl"):
        shutil.copy(training_report / name, tmp_path)
    changed = tmp_path / "changed.xyz"
    changed.write_text(data_file("silicon_train.xyz").read_text().replace("3", "4", 1))
    text = (tmp_path / "config.toml").read_text()
    settings = re.sub(r"^train = .*$", f'train = "{changed}"', text, flags=re.MULTILINE)
    (tmp_path / "config.toml").write_text(settings)
    assert main(["report", str(tmp_path)]) == 2
    assert "changed.xyz has changed since" in capsys.readouterr().err
