"""Figures: matplotlib in, PNG files or SVG text out."""

import io
import itertools
import re
from pathlib import Path

import numpy as np

from mlip.data.quantities import QUANTITIES

SERIES = ("#2f7fb8", "#c8553d", "#5f8f3a", "#8d6cab", "#b8860b", "#3a9c9c", "#b0578d", "#777777")
INK = "#010203"  # of lines and letters, which a page shows in its own colour of text
MOST_POINTS = 20_000  # in a scatter plot
MOST_EPOCHS = 400  # in learning curves
STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "mlip",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
}
_numbers = itertools.count()


def panels(count, together, width=4.2, height=3.2):
    """Figures with so many panels in all: one figure `together`, or one for each panel.

    Returns:
      list of figures, list of panels.
    """
    from matplotlib.figure import Figure  # here, since commands without plots are quicker so

    if together:
        made = Figure(figsize=(width * count, height), layout="constrained")
        return [made], list(np.atleast_1d(made.subplots(1, count)))
    made = [Figure(figsize=(width, height), layout="constrained") for _ in range(count)]
    return made, [figure.subplots() for figure in made]


def plain_label(text):
    """A name as matplotlib shows it without reading a formula or an order into it."""
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def thinned(rows, most):
    """At most about so many of the rows, evenly, always with the last."""
    return [*rows[: -1 : len(rows) // most + 1], *rows[-1:]]


def draw(function):
    """The same function of drawing, in the style of all figures."""

    def drawing(*arguments, **settings):
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return function(*arguments, **settings)

    drawing.__doc__ = function.__doc__
    return drawing


def to_svg(made):
    """A figure as text to put into a page, in the page's colour of text."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        made.savefig(text, format="svg", transparent=True, dpi=110, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: sans-serif", svg)
    # Several figures on a page must not share names.
    number = next(_numbers)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="f{number}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#f{number}-", svg)
    width = re.search(r'width="([\d.]+)pt"', svg)[1]
    return svg.replace("<svg ", f'<svg role="img" style="max-width: {width}pt" ', 1)


def to_png(made, path):
    import matplotlib

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"font.size": 9}):
        made.savefig(path, dpi=150, facecolor="white")
    return path


@draw
def parity(name, values, together=False):
    """Predicted against reference, and the distribution of the errors.

    Args:
      name: of a quantity.
      values: its `Parity`.
      together: in one figure.
    """
    row = QUANTITIES[name]
    title, unit = row.title, f"{row.unit}/atom" if row.per_atom else row.unit
    divisor = values.n_atoms if row.per_atom else 1.0
    reference, predicted = values.reference / divisor, values.predicted / divisor
    if row.per_atom:
        offset = reference.mean()
        reference, predicted = reference - offset, predicted - offset
        title = f"{title} above the mean"
    error = row.factor * (predicted - reference)
    made, (left, right) = panels(2, together, 4.0, 3.4)
    ends = [min(reference.min(), predicted.min()), max(reference.max(), predicted.max())]
    left.plot(ends, ends, color="0.6", lw=1, zorder=0)
    shown = slice(None, None, len(reference) // MOST_POINTS + 1)
    left.plot(
        reference[shown],
        predicted[shown],
        ".",
        ms=3,
        color=row.color,
        alpha=0.6,
        rasterized=True,
    )
    left.set(xlabel=f"DFT ({unit})", ylabel=f"predicted ({unit})", title=title)
    left.set_aspect("equal")
    right.hist(error, bins=min(60, max(10, len(error) // 5)), color=row.color)
    rmse, mae = np.sqrt((error**2).mean()), np.abs(error).mean()
    right.set(
        xlabel=f"error ({row.shown})",
        ylabel="count",
        title=f"RMSE {rmse:.2f}, MAE {mae:.2f} {row.shown}",
    )
    return made


def write_parity(found, folder):
    """One PNG for each property of a `parity`."""
    for name, values in found.items():
        to_png(*parity(name, values, together=True), Path(folder) / f"parity_{name}.png")


@draw
def learning_curves(runs, together=False):
    """Training and validation errors against wall time; a panel for each property.

    Args:
      runs: rows of `metrics.jsonl` by the name of the run; of one run the training errors too.
      together: in one figure.
    """
    keys = {
        f"{name}_rmse_{quantity.suffix}": f"{name} RMSE ({quantity.shown})"
        for name, quantity in QUANTITIES.items()
    }
    last = [rows[-1] for rows in runs.values() if rows]
    keys = {k: v for k, v in keys.items() if any(row.get(f"valid_{k}") is not None for row in last)}
    made, axes = panels(len(keys), together, height=3.4)
    for panel, (key, label) in zip(axes, keys.items()):
        for (name, rows), color in zip(runs.items(), itertools.cycle(SERIES)):
            rows = thinned(rows, MOST_EPOCHS // len(runs))
            minutes = [row["seconds"] / 60 for row in rows]
            lines = {f"valid_{key}": (plain_label(name) if len(runs) > 1 else "validation", color)}
            if len(runs) == 1:
                lines[f"train_{key}"] = "training", "0.6"
            for part, (text, shade) in lines.items():
                values = [np.nan if (v := row.get(part)) is None else v for row in rows]
                panel.plot(minutes, values, ".-", ms=2, lw=1, color=shade, label=text)
        panel.set(xlabel="minutes", ylabel=label, yscale="log")
        panel.grid(alpha=0.3, which="both")
        panel.legend()
    return made


@draw
def lines(contents):
    """Curves in panels, a figure for each.

    Args:
      contents: list of dictionaries with `x` and `y` (texts of the axes), `curves` (label →
        (xs, ys)), and if wanted `dots` (likewise), `marks` (places of vertical lines by label),
        `log` (axes, such as "y") and `limits` (of y).
    """
    made, axes = panels(len(contents), together=False)
    for axis, panel in zip(axes, contents):
        for (label, (xs, ys)), color in zip(panel["curves"].items(), itertools.cycle(SERIES)):
            axis.plot(xs, ys, color=color, label=plain_label(label) or None)
        for (label, (xs, ys)), color in zip(
            panel.get("dots", {}).items(), itertools.cycle(SERIES[1:])
        ):
            axis.plot(xs, ys, "o", ms=3, color=color, label=label, alpha=0.7, rasterized=True)
        for place in panel.get("marks", ()):
            axis.axvline(place, color="0.6", lw=0.8, ls="--", zorder=0)
        for name in panel.get("log", ""):
            getattr(axis, f"set_{name}scale")("log")
        if "limits" in panel:
            axis.set_ylim(*panel["limits"])
        axis.set(xlabel=panel["x"], ylabel=panel["y"], title=panel.get("title", ""))
        axis.ticklabel_format(useOffset=False) if not panel.get("log") else None
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8)
    return made
