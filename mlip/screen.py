"""What a user sees on the terminal: progress and tables."""

import math
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mlip.data.checks.findings import GRADES, listed
from mlip.data.quantities import QUANTITIES
from mlip.data.structure import symbol
from mlip.simulation.trajectory import COLUMNS, summary
from mlip.training.evaluation import error_rows

MOST_ROWS = 40  # of a table on the screen
LINE_SECONDS = 15.0  # between two lines of progress that stay on the screen


class Screen:
    """Shows a training run: a bar with the errors, and a line of them now and then."""

    def __init__(self):
        self.console = Console(highlight=False, markup=False)
        self.last, self.shown, self.errors = 0.0, False, "first epoch"

    def __enter__(self):
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[errors]}"),
            console=self.console,
        )
        self.task = None
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def line(self, text):
        self.console.print(text, soft_wrap=True)

    def update(self, progress, fraction, row):
        if self.task is None:
            self.task = self.bar.add_task("", total=1.0, epoch=1, errors=self.errors)
            self.bar.start()
        if row is not None:
            self.errors = "valid " + ", ".join(
                f"{row[key]:.2f} {quantity.shown}"
                for name, quantity in QUANTITIES.items()
                if row.get(key := f"valid_{name}_rmse_{quantity.suffix}") is not None
            )
            if time.monotonic() - self.last > LINE_SECONDS or fraction >= 1:
                self.last = time.monotonic()
                best = ", best so far" if row["best"] else ""
                self.line(
                    f"epoch {row['epoch']:4d}  {row['seconds'] / 60:6.1f} min  {self.errors}{best}"
                )
        epoch = progress.epoch + (fraction < 1)
        self.bar.update(self.task, completed=fraction, epoch=epoch, errors=self.errors)


class DynamicsScreen:
    """Shows a simulation: a bar with its speed, and a line of the first system now and then."""

    def __init__(self, config):
        self.config = config
        self.console = Console(highlight=False, markup=False)
        self.begin, self.last = None, 0.0
        self.trajectories = []  # as they were last seen

    def __enter__(self):
        self.bar = Progress(
            TextColumn("step {task.completed}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[speed]}"),
            console=self.console,
        )
        self.task = None
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def line(self, text):
        self.console.print(text, soft_wrap=True)

    def update(self, step, trajectories):
        """Called with the step reached and the `Trajectory` of every system."""
        self.trajectories = trajectories
        now, total = time.monotonic(), self.config.steps
        if self.task is None:  # what came before was mostly compilation
            self.task = self.bar.add_task("", total=total, speed="")
            self.bar.start()
            self.begin = now, step
        speed, done = "", step - self.begin[1]
        if done:
            rate = done / (now - self.begin[0])
            per_day = rate * 86400 * self.config.timestep * 1e-6
            speed = f"{rate:.4g} steps/s, {per_day:.3g} ns/day"
        self.bar.update(self.task, completed=step, speed=speed)
        rows = next((t for t in trajectories if not t.stopped), trajectories[0]).thermo
        if rows and (now - self.last > LINE_SECONDS or step >= total):
            self.last = now
            row = dict(zip(COLUMNS, rows[-1]))
            self.line(
                f"{row['time_ps']:10.4g} ps  {row['temperature_K']:7.1f} K  potential "
                f"{row['potential_eV']:.4f} eV  conserved {row['conserved_eV']:.4f} eV  {speed}"
            )


def dynamics_table(trajectories):
    """What a simulation came to, a row for each system; means over the second half."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("system", "atoms", "steps", "mean K", "mean GPa", "drift meV/atom/ps", "ended"):
        table.add_column(name, justify="left" if name in ("system", "ended") else "right")
    for index, trajectory in enumerate(trajectories):
        found = summary(trajectory.thermo, len(trajectory.structure))
        names = {"temperature_K": ".1f", "pressure_GPa": ".3f", "drift_meV_per_atom_per_ps": ".2g"}
        values = [(math.nan if (v := found[n]) is None else v, form) for n, form in names.items()]
        table.add_row(
            f"{index:03d} {trajectory.structure.name}",
            str(len(trajectory.structure)),
            str(max([0, *(f.step for f in trajectory.frames), *(r[0] for r in trajectory.thermo)])),
            *(f"{value:{form}}" if math.isfinite(value) else "–" for value, form in values),
            trajectory.stopped or "as asked",
        )
    return table


class RelaxationScreen:
    """Shows relaxations: a bar of those that have ended, and the largest force on the others."""

    def __init__(self):
        self.console = Console(highlight=False, markup=False)

    def __enter__(self):
        self.bar = Progress(
            TextColumn("relaxed {task.completed} of {task.total}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("largest force {task.fields[force]:.3g} eV/Å"),
            console=self.console,
        )
        self.task = self.bar.add_task("", total=None, force=math.nan)
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def line(self, text):
        self.console.print(text, soft_wrap=True)

    def update(self, done, of, force):
        self.bar.update(self.task, completed=done, total=of, force=force)


def relaxation_table(results):
    """Results of `mlip.relaxation.relax.relax`; of many those that have not converged."""
    shown, title = results, None
    if len(results) > MOST_ROWS:
        shown = [result for result in results if not result.converged][:MOST_ROWS]
        title = f"{len(results)} structures, {sum(r.converged for r in results)} converged"
    table = Table(title=title)
    table.add_column("start")
    columns = "atoms,steps,energy\neV,largest force\neV/Å,largest stress\nGPa,volume\nÅ³,converged"
    for heading in columns.split(","):
        table.add_column(heading, justify="right")
    for result in shown:
        volume, stress = result.structure.volume, result.max_stress
        table.add_row(
            result.structure.name,
            str(len(result.structure)),
            str(result.steps),
            f"{result.energy:.4f}",
            f"{result.max_force:.4f}",
            "" if stress is None else f"{stress:.4f}",
            f"{volume:.3f}" if math.isfinite(volume) else "",
            "yes" if result.converged else "no",
        )
    return table


def print_to_screen(table):
    """A rich table, or a dictionary as two columns."""
    console = Console(highlight=False, markup=False)
    if isinstance(table, dict):
        grid = Table.grid(padding=(0, 2))
        for key, value in table.items():
            grid.add_row(key, str(value))
        table = grid
    console.print(table)


def metrics_table(errors, title):
    """Errors overall, by group and by element as a rich table."""
    table = Table(title=title)
    table.add_column("frames")
    columns, rows = error_rows(errors)
    for heading in columns:
        table.add_column(f"{heading}\nRMSE (MAE)", justify="right")
    for name, pairs in rows:
        cells = ["" if rmse is None else f"{rmse:.2f} ({mae:.2f})" for rmse, mae in pairs]
        table.add_row(name, *cells)
    return table


def checks_table(checks):
    table = Table(title="compiled arithmetic against NumPy")
    for heading in ("part of the network", "edges", "largest deviation", "wrong rows"):
        table.add_column(heading, justify="left" if heading.startswith("part") else "right")
    for check in checks:
        table.add_row(check.name, str(check.n_edges), f"{check.error:.1e}", str(check.wrong))
    return table


def summary_table(summary):
    """What a data set holds, as two columns."""
    rows = {"frames": f"{summary['frames']} with {summary['atoms']} atoms"}
    if summary["surveyed_frames"] < summary["frames"]:
        rows["neighbours of"] = f"{summary['surveyed_frames']} frames, drawn evenly"
    rows["elements"] = _counts(summary["elements"])
    rows["compositions"] = _counts(summary["compositions"])
    rows["kinds"] = _counts(summary["periodicity"])
    rows["config_type"] = _counts(summary["groups"])
    rows["labels"] = ", ".join(
        f"{kind} from {label['key']} in {label['frames']}"
        for kind, label in summary["labels"].items()
    )
    if summary["e0_eV"]:
        values = ", ".join(f"{name} {value:.4f}" for name, value in summary["e0_eV"].items())
        rows["E0 (eV)"] = f"{values}; {summary['e0_source']}"
    for name, key in {
        "atoms a frame": "atoms_per_frame",
        f"neighbours within {summary['cutoff_A']:g} Å": "neighbors",
        "energy, eV/atom": "energy_eV_per_atom",
        "|force|, eV/Å": "forces_eV_per_A",
        "pressure, GPa": "pressure_GPa",
        "volume, Å³/atom": "volume_A3_per_atom",
    }.items():
        if values := summary[key]:
            low, middle, high = (values["quantiles"][q] for q in ("0.0", "0.5", "1.0"))
            rows[name] = f"{low:.5g} to {high:.5g}, median {middle:.5g}"
    if summary["closest_A"] is not None:
        rows["closest atoms"] = f"{summary['closest_A']:.3f} Å"
    return {name: text for name, text in rows.items() if text}


def _counts(values, most=6):
    listed = [f"{name} {count}" for name, count in list(values.items())[:most]]
    more = len(values) - most
    return ", ".join(listed) + (f" and {more} more" if more > 0 else "")


def findings_table(report):
    """What a check found, errors first."""
    counts = [(grade, len(report.graded(grade))) for grade in GRADES]
    found = ", ".join(f"{n} {grade}{'s' if n != 1 else ''}" for grade, n in counts)
    if not report.findings:
        return f"{report.data}: nothing found"
    table = Table(title=f"{report.data}: {found}", show_lines=True, title_justify="left")
    table.add_column("")
    table.add_column("found, and what to do")
    for finding in report.findings:
        text = f"{finding.check}: {finding.message}."
        text += f"\nin {listed(finding.frames)}" if finding.frames else ""
        table.add_row(finding.grade, f"{text}\n→ {finding.remedy}")
    return table


def card(potential):
    """What a model is, as a flat dictionary for the terminal and JSON."""
    names = [symbol(z) for z in potential.species]

    def listed(values):
        return ", ".join(f"{name} {value:.4f}" for name, value in zip(names, values))

    terms, training = potential.surface.terms, potential.training
    return {
        "species": ", ".join(names),
        **potential.model.about(),
        "terms beside the network": ", ".join(map(str, terms)) or "none",
        "parameters": potential.n_parameters,
        "precision": potential.dtype,
        "E0 (eV)": listed(potential.e0),
        "shift (eV)": listed(potential.shift),
        "scale (eV)": listed(potential.scale),
        "neighbours an atom": round(float(potential.average_neighbors), 2),
        **{f"training {key}": value for key, value in training.items()},
    }


def memory_lines(needs):
    """What `mlip.training.estimate.memory` found, for the terminal."""
    size = f"{needs['atoms']} atoms with up to {needs['neighbors']} neighbours"
    return {
        "memory of an evaluation": f"{needs['inference_bytes'] / 1e9:.2f} GB for {size}",
        "memory of a training step": f"{needs['training_bytes'] / 1e9:.2f} GB for {size}",
    }


def comparison_table(names, rows):
    """Training runs side by side; `rows` as `mlip.report.compare.compare` gives them."""
    table = Table()
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for key, values in rows.items():
        cells = [
            f"{v:.4g}" if isinstance(v, float) else "–" if v is None else str(v) for v in values
        ]
        table.add_row(key, *cells)
    return table
