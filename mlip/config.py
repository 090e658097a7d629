"""Settings: a TOML table or command line flags into frozen dataclasses, and back.

Every setting stands once, as a field of a dataclass beside the function that uses it. A nested
dataclass is a TOML section; the names of all fields differ, so that flags need no section.
"""

import argparse
import difflib
import inspect
import json
import re
import tomllib
import types
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Union, get_args, get_origin, get_type_hints


def read_toml(path):
    """The nested dictionaries of a TOML file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is not TOML.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give a TOML file with settings")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not valid TOML: {error}; correct it, in UTF-8, as name = value"
        ) from None
    return table


def from_toml(cls, path):
    """An instance of a dataclass from a TOML file; see `read_toml` and `from_table`."""
    return from_table(cls, read_toml(path))


def from_table(cls, table, whole=None):
    """An instance of a dataclass from nested dictionaries.

    Args:
      whole: the dataclass that this one is a section of, for messages.

    Raises:
      ValueError: an unknown key (with the nearest valid one), a value of a wrong type, a setting
        without default that is not given.
    """
    hints, known = get_type_hints(cls), {field.name for field in fields(cls)}
    table = _moved(cls, table)
    for key in table:
        if key not in known:
            raise ValueError(_unknown(key, whole or cls, cls))
    values = {}
    for name, value in table.items():
        if is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise ValueError(f"{name} is {value!r}; it is a section, written [{name}]")
            values[name] = from_table(hints[name], value, cls)
        else:
            values[name] = _convert(name, value, hints[name])
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"{missing[0]} is not given; it has no default")
    return cls(**values)


def _moved(cls, table):
    """The table with settings of earlier versions where they stand now, by `cls.MOVED`."""
    table = dict(table)
    for name, (old, new) in getattr(cls, "MOVED", {}).items():
        sections = table.get(old), table.get(new, {})
        if all(isinstance(section, dict) for section in sections) and name in sections[0]:
            rest = dict(sections[0])
            table |= {new: {name: rest.pop(name), **sections[1]}, old: rest}
    return table


def to_table(config):
    """Nested dictionaries of all settings that have a value; a table is one already."""
    return _given(config if isinstance(config, dict) else asdict(config))


def _given(table):
    return {
        key: _given(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def to_toml(config):
    """The text of a TOML file from which `from_toml` makes the same config."""
    table = to_table(config)
    lines = [f"{k} = {_toml(v)}" for k, v in table.items() if not isinstance(v, dict)]
    for section, values in table.items():
        if isinstance(values, dict) and values:
            lines += ["", f"[{section}]"] + [f"{k} = {_toml(v)}" for k, v in values.items()]
    return "\n".join(lines) + "\n"


def _toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # TOML escapes as JSON does, and this character besides.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml(v) for v in value)}]"
    return repr(value)


def _unknown(key, whole, cls):
    """Message for a key that a dataclass does not have, naming the nearest and its section."""
    places = {name: section for name, (section, _) in leaves(whole).items()}
    names = [*places, *(f.name for f in fields(whole))] if whole is cls else fields(cls)
    names = [getattr(name, "name", name) for name in names]
    near = difflib.get_close_matches(key, names, n=1)
    if key in places:
        return f"{key} belongs in the section [{places[key]}]"
    hint = f"did you mean {near[0]}?" if near else f"valid are {', '.join(sorted(names))}"
    return f"{key!r} is no setting; {hint}"


def _convert(name, value, hint):
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} is {value!r}; give a list, such as [64, 64]")
        return tuple(_convert(name, item, get_args(hint)[0]) for item in value)
    if hint is str and isinstance(value, dict):  # a TOML table of numbers, as for E0
        return ", ".join(f"{k}={v}" for k, v in value.items())
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    accepted, kind = {
        int: (int, "an integer"),
        float: ((int, float), "a number"),
        bool: (bool, "true or false"),
        str: (str, "text"),
        dict: (dict, "a table"),
    }[hint]
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{name} is {value!r}; give {kind}")
    try:
        if hint is str:
            value.encode()
        return hint(value)
    except UnicodeEncodeError:
        raise ValueError(f"{name} is {value!r}, which is not UTF-8; rename what it names") from None
    except OverflowError:
        raise ValueError(f"{name} is {value}; give a number below 1e308") from None


def leaves(cls):
    """Every setting of a dataclass and its sections: {name: (section or None, field)}."""
    found, hints = {}, get_type_hints(cls)
    for field in fields(cls):
        if is_dataclass(hints[field.name]):
            found |= {f.name: (field.name, f) for f in fields(hints[field.name])}
        else:
            found[field.name] = (None, field)
    return found


def add_flags(parser, cls, section=None):
    """Give a parser a flag for every setting of a dataclass; see `from_flags`."""
    hints, comments = get_type_hints(cls), _comments(cls)
    group = parser.add_argument_group(section or "settings")
    for field in fields(cls):
        hint = hints[field.name]
        if is_dataclass(hint):
            add_flags(parser, hint, field.name)
            continue
        flag, text = f"--{field.name.replace('_', '-')}", comments.get(field.name, "")
        if field.default not in (MISSING, None):
            text = f"{text} (default {field.default})".strip()
        text = text.replace("%", "%%")
        kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        kind = next(option for option in kinds if option is not type(None))
        if kind is dict:  # a table of names that the dataclass does not know
            continue
        if kind is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(flag, action=action, default=None, help=text)
        elif get_origin(kind) is tuple:
            group.add_argument(flag, nargs="+", type=get_args(kind)[0], help=text)
        else:
            group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=text)


def from_flags(cls, arguments, base=None):
    """An instance of a dataclass from parsed flags laid over a table of settings.

    Args:
      arguments: what a parser with `add_flags` returned.
      base: nested dictionaries that the flags override.
    """
    table = {k: dict(v) if isinstance(v, dict) else v for k, v in (base or {}).items()}
    for name, (section, _) in leaves(cls).items():
        value = getattr(arguments, name, None)
        if value is not None:
            part = table.setdefault(section, {}) if section else table
            if not isinstance(part, dict):
                raise ValueError(f"{section} is {part!r}; it is a section, written [{section}]")
            part[name] = value
    return from_table(cls, table)


def _comments(cls):
    """The comment beside each field, or its metadata `help`, which is its help text too."""
    pattern = re.compile(r"^    (\w+): [^#\n]*# (.*)$", re.MULTILINE)
    beside = dict(pattern.findall(inspect.getsource(cls)))
    told = {field.name: field.metadata.get("help") for field in fields(cls)}
    return {name: text for name, text in told.items() if text} | beside
