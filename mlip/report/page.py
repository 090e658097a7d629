"""A report: sections of text, tables and figures, as one HTML page and as JSON."""

import datetime
import html
import json
import math
import os
import platform
import re
import shlex
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mlip.files import atomic_write
from mlip.report.figures import to_svg

SCHEMA = "mlip report 1"  # the number rises when a key changes its meaning or goes
CSS = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5c6670; --paper: #ffffff;
  --line: #d9dee3; --wash: #f4f6f8; --bad: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #a3adb6; --paper: #15191d; --line: #363d44; --wash: #1e2429;
    --bad: #ff8a80; --warn: #f0b95a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); }
nav { margin: .8rem 0; font-size: .9rem; } nav a { color: inherit; margin-right: .9rem; }
figure { margin: .8rem 0; } figcaption { color: var(--soft); font-size: .88rem; }
.row { display: flex; flex-wrap: wrap; gap: .5rem; align-items: flex-start; }
svg { width: 100%; height: auto; color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; vertical-align: top; overflow-wrap: normal; }
th { font-weight: 600; } .text, th:first-child, td:first-child { text-align: left; }
td.text { min-width: 6rem; }
table.pairs td { overflow-wrap: anywhere; text-align: left; }
table.pairs td:first-child { color: var(--soft); min-width: 7rem; }
td.error { color: var(--bad); } td.warning { color: var(--warn); }
pre { background: var(--wash); padding: .7rem; overflow-x: auto; font-size: .85rem; }
.key { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.key div { background: var(--wash); border-radius: .4rem; padding: .5rem .9rem; }
.key b { display: block; font-size: 1.25rem; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --line: #bbb;
    --wash: #fff; --bad: #b3261e; --warn: #8a5a00; }
  body { font-size: 11px; max-width: none; padding: 0; } nav { display: none; }
  tr, svg { break-inside: avoid; } h2 { break-after: avoid; }
  .row { display: block; } svg { width: 47%; margin-right: 2%; }
  .scroll { overflow: visible; } table { font-size: 9.5px; } th, td { padding: .2rem .4rem; }
  pre { overflow: visible; white-space: pre-wrap; } }
"""


@dataclass(frozen=True)
class Table:
    """Rows of cells; text stands left, numbers right."""

    columns: tuple[str, ...]  # empty: two columns of names and values, without a head
    rows: list


@dataclass(frozen=True)
class Figure:
    """Matplotlib figures, and what they show together."""

    caption: str
    images: list


@dataclass(frozen=True)
class Section:
    """A part of a report: what a reader sees, and the same as data."""

    title: str
    parts: list = field(default_factory=list)  # texts, `Table`s and `Figure`s
    data: dict = field(default_factory=dict)  # for JSON


def require_place(folder, kind):
    """Refuse a folder with a report of another kind, before hours are spent on one.

    Raises:
      FileExistsError: there is one.
    """
    path = Path(folder) / "report.json"
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["kind"]
    except (ValueError, KeyError, TypeError):
        found = "file of others"
    if found != kind:
        raise FileExistsError(f"{path} is the report of another kind ({found}); give another --out")


def write(folder, kind, title, about, key, sections):
    """Write `report.html` and `report.json`.

    Args:
      kind: training, evaluation, simulation or comparison.
      about: a line under the title.
      key: the most important numbers, {text: value}, shown large.
      sections: list of `Section`.
    """
    folder = Path(folder)
    with atomic_write(folder / "report.html") as temporary:
        temporary.write_text(to_html(title, about, key, sections), encoding="utf-8")
    table = {
        "schema": SCHEMA,
        "kind": kind,
        "title": title,
        "about": about,
        "key": key,
        "sections": {section.title: section.data for section in sections},
    }
    with atomic_write(folder / "report.json") as temporary:
        text = json.dumps(plain(table), indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def plain(value):
    """The same in lists, dictionaries and numbers that JSON knows; None for what is not finite."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value


def to_html(title, about, key, sections):
    """The page as text; see `write`."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{CSS}</style></head><body>",
        f'<h1>{html.escape(title)}</h1><p class="soft">{html.escape(about)}</p>',
        '<div class="key">',
        *(f"<div><b>{html.escape(shown(v))}</b>{html.escape(k)}</div>" for k, v in key.items()),
        "</div><nav>",
        *(f'<a href="#s{n}">{html.escape(s.title)}</a>' for n, s in enumerate(sections)),
        "</nav>",
    ]
    for number, section in enumerate(sections):
        parts.append(f'<section id="s{number}"><h2>{html.escape(section.title)}</h2>')
        parts += [_part(part) for part in section.parts]
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>", ""])


def _part(part):
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Figure):
        caption = html.escape(part.caption)
        images = "".join(map(to_svg, part.images))
        return f'<figure><div class="row">{images}</div><figcaption>{caption}</figcaption></figure>'
    if part.startswith("$ "):
        return f"<pre>{html.escape(part[2:])}</pre>"
    return f"<p>{html.escape(part)}</p>"


def _table(table):
    rows = []
    for row in table.rows:
        cells = [f'<td class="{_kind(value)}">{html.escape(shown(value))}</td>' for value in row]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    first = table.rows[0] if table.rows else [""] * len(table.columns)
    kinds = [_kind(value) for value in first]
    head = "".join(
        f'<th class="{kind}">{html.escape(text)}</th>' for text, kind in zip(table.columns, kinds)
    )
    head = f"<thead><tr>{head}</tr></thead>" if table.columns else ""
    kind = "" if table.columns else ' class="pairs"'
    return f'<div class="scroll"><table{kind}>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _kind(value):
    if not isinstance(value, str) or re.fullmatch(r"-?\d+\.\d+", value):
        return "number"
    return f"text {value}" if value in ("error", "warning") else "text"


def shown(value):
    """A value as a reader wants to see it."""
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return str(value)


def pairs(values):
    """A dictionary as a table of two columns."""
    return Table((), [[str(name), shown(value)] for name, value in values.items()])


def provenance(settings, more, command=None):
    """The last section of every report: versions, machine, settings, and the command to rerun.

    Args:
      settings: text of a TOML file.
      more: facts, {name: value}.
      command: list of words; that of this process if None.
    """
    import jax

    packages = ("mlip-jax", "jax", "jaxlib", "numpy", "flax", "optax", "ase")
    facts = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        **more,
    }
    command = shlex.join(command or ["mlip", *sys.argv[1:]])
    return Section(
        "Settings and versions",
        [pairs(facts), "The command:", f"$ {command}", "The settings:", f"$ {settings}"],
        {"facts": facts, "command": command, "settings": settings},
    )
