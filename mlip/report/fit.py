"""Reports on a fit: of a training run, and of an evaluation."""

import itertools
import json
from pathlib import Path

import numpy as np

from mlip import config as settings
from mlip.data.checks.findings import listed
from mlip.data.structure import symbol
from mlip.model.file import fingerprint, load_model
from mlip.report import figures, probes
from mlip.report.page import Figure, Section, Table, pairs, provenance, write
from mlip.screen import card, summary_table
from mlip.training.evaluation import error_rows, metrics, parity
from mlip.training.finetune import network_class
from mlip.training.setup import TrainConfig, divide, file_card, look_over
from mlip.units import MEV

WORST = 10  # frames that are named
MOST_ATOMS = 200  # of a structure that probes are tried on
MOST_PAIRS = 36  # of elements, whose dimers are shown
MOST_GROUPS = 40  # rows of errors
MOST_DOTS = 2000  # of frames beside a curve


def report_training(folder):
    """Write `report.html` and `report.json` of a run into its folder.

    Raises:
      FileNotFoundError: it holds no run that has finished an epoch.
      ValueError, OSError: its data cannot be read any more.
    """
    folder = Path(folder)
    for name in ("config.toml", "model.safetensors", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}; give the folder of a run of mlip train that has "
                "finished an epoch"
            )
    config = settings.from_toml(TrainConfig, folder / "config.toml")
    potential = load_model(folder / "model.safetensors", model=network_class(config))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in ("train", "valid"):
        then = potential.training.get(name)
        if isinstance(then, dict) and then != file_card(getattr(config, name)):
            raise ValueError(
                f"{getattr(config, name)} has changed since the run in {folder} began, so that the "
                "report would mix frames of both; put it back"
            )
    looked = look_over(config)
    train, valid, _ = divide(config, looked.structures)
    predictions = potential.predict(valid)
    found = parity(valid, predictions)
    errors = metrics(found)
    figures.to_png(
        *figures.learning_curves({"run": rows}, together=True), folder / "learning_curve.png"
    )
    sections = [
        data_section(looked),
        Section(
            "Learning curves",
            [
                Figure(
                    "Errors on the training frames, taken while the weights moved, and of the "
                    "averaged weights on the validation frames.",
                    figures.learning_curves({"run": rows}),
                )
            ],
            {"epochs": rows},
        ),
        *error_sections(valid, predictions, found, errors, "the validation frames"),
        *model_sections(potential, train, valid),
        provenance(
            (folder / "config.toml").read_text(encoding="utf-8"),
            {"model": fingerprint(potential), **training_facts(potential)},
            ["mlip", "train", str(folder / "config.toml"), "--out", "again"],
        ),
    ]
    about = (
        f"{potential.n_parameters} parameters trained on {len(train)} frames, "
        f"{rows[-1]['seconds'] / 60:.1f} minutes; errors (RMSE) on {len(valid)} validation frames"
    )
    title = f"Training of {folder.resolve().name}"
    write(folder, "training", title, about, key_numbers(errors), sections)


def report_evaluation(folder, model, looked, potential, predictions, probe=True):
    """Write `report.html` and `report.json` of a model's errors on a data set.

    Args:
      model: its file.
      looked: the doctor's `Report` of the data, all of whose frames can be used.
      potential: as loaded.
      predictions: of `looked.structures`.
      probe: try things out on the potential too, which takes half a minute.
    """
    structures = looked.structures
    found = parity(structures, predictions)
    errors = metrics(found)
    about = f"Errors (RMSE) on {len(structures)} frames of {looked.data}"
    facts = {f"data {key}": text for key, text in file_card(looked.data).items()}
    facts |= {"model": fingerprint(potential), **training_facts(potential)}
    sections = [
        data_section(looked),
        *error_sections(structures, predictions, found, errors, looked.data),
        *(model_sections(potential, [], structures) if probe else [model_section(potential)]),
        provenance(settings.to_toml(potential.model.card()), facts),
    ]
    title = f"Evaluation of {model}"
    write(folder, "evaluation", title, about, key_numbers(errors), sections)


def key_numbers(errors):
    """The errors over all frames."""
    columns, ((_, pairs), *_) = error_rows(errors)
    return {name: rmse for name, (rmse, _) in zip(columns, pairs)}


def training_facts(potential):
    """What a model file says of its training, line by line."""
    facts = {}
    for name, value in potential.training.items():
        lines = value if isinstance(value, dict) else {"": value}
        if name != "closest":  # stands with the dimers
            facts |= {f"training {name} {key}".strip(): text for key, text in lines.items()}
    return facts


def data_section(looked):
    """What the data holds and what was found in it."""
    parts = [pairs(summary_table(looked.summary))] if looked.summary else []
    found = [
        [f.grade, f.check, f.message, listed(f.frames) if f.frames else "the whole set", f.remedy]
        for f in looked.findings
    ]
    heads = ("", "check", "found", "in", "what to do")
    nothing = "Nothing suspicious was found in it." if looked.summary else "It was not looked over."
    parts.append(Table(heads, found) if found else nothing)
    return Section("Data", parts, looked.table())


def error_sections(structures, predictions, found, errors, where):
    """Errors by group and element, parity plots, errors by force, worst frames.

    Args:
      found, errors: `parity` and `metrics` of the predictions.
      where: what the frames are.
    """
    columns, rows = error_rows(errors)
    heads = "", *(f"{name} ({kind})" for kind in ("RMSE", "MAE") for name in columns)
    cells = [[name, *(pair[kind] for kind in (0, 1) for pair in pairs)] for name, pairs in rows]
    more = len(cells) - MOST_GROUPS
    text = f"On {where}." + (
        f" {more} more kinds of frames are in report.json." if more > 0 else ""
    )
    sections = [Section("Errors", [text, Table(heads, cells[:MOST_GROUPS])], errors)]
    images = [image for name, values in found.items() for image in figures.parity(name, values)]
    text = "Predicted against reference, and the distribution of the errors."
    sections.append(Section("Parity", [Figure(text, images)]))
    if "forces" in found:
        sections.append(force_section(found["forces"]))
    return [*sections, worst_section(structures, predictions)]


def force_section(found):
    """Error of the forces against their size.

    Args:
      found: `Parity` of the forces.
    """
    reference, error = found.reference.reshape(-1, 3), MEV * found.errors().reshape(-1, 3)
    size = np.linalg.norm(reference, axis=1)
    edges = np.unique(np.quantile(size, np.linspace(0, 1, 11)))
    if len(edges) < 2:
        return Section("Errors against force", ["All forces are of one size."])
    which, rows = np.digitize(size, edges[1:-1]), []
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = which == number
        rms = np.sqrt((error[inside] ** 2).mean())
        relative = rms / (MEV * np.sqrt((reference[inside] ** 2).mean()))
        rows.append([float(low), float(high), int(inside.sum()), float(rms), float(relative)])
    heads = "|force| from", "to (eV/Å)", "atoms", "RMSE (meV/Å)", "relative"
    curve = [(row[0] + row[1]) / 2 for row in rows], [row[3] for row in rows]
    panel = {"x": "|force| (eV/Å)", "y": "RMSE of a component (meV/Å)", "curves": {"": curve}}
    text = "Error of the forces by the size of the reference, a tenth of the atoms in each bin."
    parts = [Figure(text, figures.lines([panel])), Table(heads, rows)]
    return Section("Errors against force", parts, {"bins": rows})


def worst_section(structures, predictions):
    """The frames with the largest errors, by name."""
    rows = []
    for structure, prediction in zip(structures, predictions):
        energy = rms = largest = None
        if structure.energy is not None:
            energy = MEV * (prediction.energy - structure.energy) / len(structure)
        if structure.forces is not None:
            difference = MEV * (prediction.forces - structure.forces)
            rms = float(np.sqrt((difference**2).mean()))
            largest = float(np.abs(difference).max())
        rows.append([structure.name, structure.group, len(structure), energy, rms, largest])
    by = 4 if any(row[4] is not None for row in rows) else 3
    rows.sort(key=lambda row: -abs(row[by] or 0.0))
    heads = (
        "frame",
        "config_type",
        "atoms",
        "energy (meV/atom)",
        "forces RMSE (meV/Å)",
        "largest force error (meV/Å)",
    )
    return Section("Worst frames", [Table(heads, rows[:WORST])], {"frames": rows[:WORST]})


def model_sections(potential, train, valid):
    """What the model is, and what is tried out on it."""
    exact = potential.with_dtype("float64")
    small = [s for s in valid if 1 < len(s) <= MOST_ATOMS] or [min(valid, key=len)]
    calm = min(small, key=lambda s: 0.0 if s.forces is None else (s.forces**2).mean())
    sections = [
        model_section(potential),
        dimer_section(exact, [*train, *valid], potential.training.get("closest", {})),
        check_section(exact, min(small, key=len)),
        run_section(potential, calm),
    ]
    if crystal := probes.crystal_of(potential, [*train, *valid]):
        sections.append(volume_section(potential, crystal, [*train, *valid]))
    facts = probes.speed(potential, max(valid, key=len))
    text = "Energy, forces and stress of the largest of the frames, once compiled, folded."
    return [*sections, Section("Speed on this machine", [text, pairs(facts)], facts)]


def model_section(potential):
    """The model's own settings and energies of single atoms."""
    heads = "element", "E0 (eV)", "shift (eV)", "scale (eV)"
    facts = {
        name: value
        for name, value in card(potential).items()
        if name not in heads and not name.startswith("training ")
    }
    values = np.stack([potential.e0, potential.shift, potential.scale], axis=1)
    names = [symbol(z) for z in potential.species]
    rows = [[name, *(f"{v:.4f}" for v in row)] for name, row in zip(names, values)]
    return Section("Model", [pairs(facts), Table(heads, rows)], facts | {"energies_eV": rows})


def dimer_section(exact, structures, closest):
    """Energy of two atoms, and their force around the cutoff.

    Args:
      exact: the potential in float64.
      structures: whose elements are looked at.
      closest: shortest distance in the training data by pair, Å.
    """
    elements = sorted({int(z) for s in structures for z in s.numbers})
    kinds = list(itertools.combinations_with_replacement(elements, 2))
    # Of many the ones that come closest to each other.
    kinds.sort(key=lambda pair: closest.get("-".join(map(symbol, pair)), np.inf))
    found = probes.dimers(exact, sorted(kinds[:MOST_PAIRS]))
    wells = [
        {
            "title": name,
            "x": "distance (Å)",
            "y": "energy (eV)",
            "curves": {"": (dimer.distances, dimer.energies)},
            "marks": [closest[name]] if name in closest else [],
            "limits": _window(dimer.energies),
        }
        for name, dimer in found.items()
    ]
    ends = {
        "x": "distance (Å)",
        "y": "force (meV/Å)",
        "curves": {n: (d.around, MEV * d.forces) for n, d in itertools.islice(found.items(), 8)},
        "marks": [exact.cutoff],
    }
    rows = []
    for name, dimer in found.items():
        minimum = int(dimer.energies.argmin())
        repels = minimum > 0 and bool((np.diff(dimer.energies[: minimum + 1]) <= 0).all())
        step = float(MEV * np.abs(np.diff(dimer.forces)).max())
        place = float(dimer.distances[minimum])
        rows.append([name, closest.get(name), place, "yes" if repels else "no", step])
    heads = (
        "pair",
        "closest in training (Å)",
        "minimum (Å)",
        "repels up to it",
        "largest step at the cutoff (meV/Å)",
    )
    texts = (
        "Two atoms alone, relative to two apart. Dashed: the closest pair in the training data; to "
        "its left the model extrapolates."
        + (f" {len(found)} of {len(kinds)} pairs." if len(found) < len(kinds) else ""),
        "Force between two atoms through the cutoff, where it must vanish smoothly.",
    )
    parts = [Figure(texts[0], figures.lines(wells)), Table(heads, rows)]
    data = {"dimers": {name: vars(dimer) for name, dimer in found.items()}, "pairs": rows}
    return Section("Dimers", [*parts, Figure(texts[1], figures.lines([ends]))], data)


def _window(energies):
    """Limits of an axis that show the well, not the height of the wall."""
    low, depth = float(energies.min()), float(-energies.min())
    return low - 0.1 - 0.1 * depth, min(float(energies.max()), max(5.0, 2 * depth)) + 0.1


def check_section(exact, structure):
    """Symmetries and derivatives of the very model file."""
    found = probes.self_checks(exact, structure)
    rows = [[name, value, unit] for name, (value, unit) in found.items()]
    text = f"In float64, on {structure.name} with its atoms moved by about 0.001 Å."
    return Section("Self-checks", [text, Table(("", "deviation", "unit"), rows)], found)


def run_section(potential, structure):
    """A short run at constant energy."""
    times, energies, facts = probes.short_run(potential, structure)
    if times is None:
        return Section("Dynamics", [f"It could not run: {facts['reason']}"], facts)
    panel = {"x": "time (ps)", "y": "energy (meV/atom)", "curves": {"": (times, energies)}}
    text = "Total energy above that of the start, at constant energy from 300 K."
    data = facts | {"time_ps": times, "energy_meV_per_atom": energies}
    return Section("Dynamics", [Figure(text, figures.lines([panel])), pairs(facts)], data)


def volume_section(potential, crystal, structures):
    """Energy against volume, with the reference energies of the same composition."""
    volume, energy, facts = probes.volumes(potential, crystal)
    alike = [
        s
        for s in structures
        if s.pbc.all()
        and s.energy is not None
        and volume[0] <= s.volume / len(s) <= volume[-1]
        and shares(s) == shares(crystal)
    ]
    alike = figures.thinned(alike, MOST_DOTS)
    dots = [s.volume / len(s) for s in alike], [s.energy / len(s) for s in alike]
    panel = {
        "x": "volume (Å³/atom)",
        "y": "energy (eV/atom)",
        "curves": {f"{crystal.name}, scaled": (volume, energy)},
        "dots": {"frames of the data": dots},
    }
    data = facts | {"volume_A3_per_atom_scan": volume, "energy_eV_per_atom": energy}
    text = "The periodic frame with the lowest energy per atom, scaled with its atoms in place."
    return Section("Energy and volume", [Figure(text, figures.lines([panel])), pairs(facts)], data)


def shares(structure):
    """The part of each element among the atoms."""
    kinds, counts = np.unique(structure.numbers, return_counts=True)
    return {z: n / len(structure) for z, n in zip(kinds.tolist(), counts.tolist())}
