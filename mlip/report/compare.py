"""Several runs side by side: one page, one table."""

import json
from pathlib import Path

from mlip.data.quantities import QUANTITIES
from mlip.report import figures
from mlip.report.page import SCHEMA, Figure, Section, Table, write

ROWS = {
    **{
        f"{name} {kind.upper()}, {row.shown}": ("Errors", f"{name}_{kind}_{row.suffix}")
        for name, row in QUANTITIES.items()
        for kind in ("rmse", "mae")
    },
    "parameters": ("Model", "parameters"),
    "features": ("Model", "features"),
    "cutoff": ("Model", "cutoff"),
    "drift, meV/atom/ps": ("Dynamics", "drift_meV_per_atom_per_ps"),
    "μs an atom": ("Speed on this machine", "microseconds_per_atom"),
    "atoms of that": ("Speed on this machine", "atoms"),
}


def read_report(folder):
    """`report.json` of a training run.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is not of a training run.
    """
    path = Path(folder) / "report.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no report.json; give the folder of a run of mlip train that has ended"
        )
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        readable = report["schema"] == SCHEMA and report["kind"] == "training"
    except (ValueError, KeyError, TypeError):
        readable = False
    if not readable:
        raise ValueError(
            f"{path} is not the report of a training run in this form ({SCHEMA}); give the folder "
            "of a run of mlip train"
        )
    return report


def compare(folders):
    """Rows of a table of several runs.

    Args:
      folders: of training runs with their reports.

    Returns:
      names of the runs, {what: [value of each run]}, and their reports.

    Raises:
      FileNotFoundError, ValueError: as `read_report`; or fewer than two runs.
    """
    if len(folders) < 2:
        raise ValueError("there is only one run; name two or more to compare")
    reports = [read_report(folder) for folder in folders]
    rows = {}
    for text, (section, name) in ROWS.items():
        values = [report["sections"].get(section, {}).get(name) for report in reports]
        if any(value is not None for value in values):
            rows[text] = values
    epochs = [report["sections"]["Learning curves"]["epochs"] for report in reports]
    rows["epochs"] = [len(run) for run in epochs]
    rows["minutes"] = [run[-1]["seconds"] / 60 for run in epochs]
    data = [report["sections"]["Settings and versions"]["facts"] for report in reports]
    for name in (
        "training train name",
        "training train sha256",
        "training seed",
        "training device",
    ):
        values = [facts.get(name) for facts in data]
        if not name.endswith("sha256") or len(set(values)) > 1:
            rows[name] = values
    settings = [_settings(report) for report in reports]
    for name in sorted({name for table in settings for name in table}):
        values = [table.get(name) for table in settings]
        if name not in ("out", "seed") and len(set(values)) > 1:
            rows[f"setting {name}"] = values
    return unique_names(folders), rows, reports


def _settings(report):
    """Settings by name, with their section in front."""
    section, found = "", {}
    for line in report["sections"]["Settings and versions"]["settings"].splitlines():
        if line.startswith("["):
            section = line.strip("[]") + "."
        elif " = " in line:
            name, _, value = line.partition(" = ")
            found[section + name] = value
    return found


def unique_names(folders):
    """The last parts of the paths, as many as tell them apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({index})" for index, name in enumerate(names)]


def report_comparison(out, names, rows, reports):
    """Write `report.html` and `report.json` of several runs into a folder."""
    curves = {
        name: report["sections"]["Learning curves"]["epochs"]
        for name, report in zip(names, reports)
    }
    text = "Errors on the validation frames of each run."
    sections = [
        Section(
            "Side by side",
            [Table(("", *names), [[key, *values] for key, values in rows.items()])],
            {"runs": names, "rows": rows},
        ),
        Section("Learning curves", [Figure(text, figures.learning_curves(curves))]),
    ]
    about = f"{len(names)} training runs"
    write(out, "comparison", "Comparison", about, {}, sections)
