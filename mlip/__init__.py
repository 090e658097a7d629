"""Equivariant message-passing interatomic potentials in JAX.

The package reads downwards; a module imports only from those above it.

    units.py               numbers and conversions
    files.py               files that are written whole or not at all
    runtime.py             what a process decides once: host devices, signals
    programs.py            compiled programs: options of XLA, where they are kept, who may run them
    config.py              TOML or flags → frozen dataclasses
    data/                  host side, NumPy in float64
        quantities.py      the table of quantities: labels, predictions, units, weights
        structure.py       Structure: one configuration with optional labels; ASE in and out
        neighbors.py       all pairs within a cutoff, any cell
        graph.py           Graph and Labels: tables of neighbours, padding, batches; conventions
        labels.py          frames of files: label keys and units; written back
        dataset.py         read data sets, split, energies of single atoms
        checks/            the doctor: what is wrong or suspicious in a data set
            findings.py    a finding, and the report of them
            sample.py      a data set as arrays: one pass over its neighbours
            labels.py      labels by themselves: found, precise, of one reference
            geometry.py    distances, cells, frames that stand twice, outliers
            sufficiency.py what is rare, missing or too large
            consistency.py energies against the work of forces and stress
            scales.py      units of energies and forces
            stress.py      sign, unit, order and orientation of the stress
            summary.py     what is in the set, in numbers
            doctor.py      check() and mend()
    model/                 JAX, pure functions
        so3.py             spherical harmonics, coupling coefficients, symmetric products
        blocks.py          atoms a few at a time, and what crosses between them
        radial.py          smooth cutoff, radial bases, distance transforms, ZBL repulsion
        execution.py       blocks, sizes, devices, memory: how models are computed, as one value
        outputs.py         what a model gives
        contract.py        what a model is; flax modules as models
        terms.py           terms of the energy beside the model's, and their sum
        derivatives.py     forces and stress
        potential.py       Potential: a model with its parameters, for structures
        spread.py          one system over several devices
        fold.py            fold(): potential → the same for constant parameters
        mace/              the networks of the MACE family
            layer.py       one layer: sums over neighbours, symmetric products, readout
            network.py     the network: displacements → energy per atom
            splines.py     functions of the distance as splines, looked up in tables
            tables.py      such tables of a trained potential's radial functions
            folded.py      the network with constant parameters: tables instead of perceptrons
            merge.py       parameters of a trained network → those of the folded one
            model.py       NetworkConfig and the models of the family
            torch_weights.py   weights of mace-torch's modules
            from_torch.py  models of mace-torch → potentials
        file.py            the one model file
    selftest.py            compiled arithmetic against NumPy
    training/
        loss.py            weighted losses and their gradient
        optimizer.py       OptimizerConfig → optax
        states.py          states that a run resumes from
        evaluation.py      errors by property, element, group
        finetune.py        starting from a trained potential
        batches.py         Frames: a data set in batches, dealt out and padded
        setup.py           TrainConfig; the data of a run, the untrained potential
        step.py            one step on one batch, on one device or several
        loop.py            train(): epochs, validation, states, resume
        estimate.py        memory of inference and training by the number of atoms
    simulation/
        neighbors.py       neighbour tables found on the device, for systems that move
        integrators.py     equations of motion, thermostats, barostats
        engine.py          many steps in one compiled loop
        setup.py           DynamicsConfig; structures as the arrays of a run
        trajectory.py      frames in memory and in files
        restart.py         the state that a simulation resumes from
        dynamics.py        run(): molecular dynamics of one system or many
    relaxation/
        minimizers.py      FIRE and L-BFGS
        descent.py         steps to a minimum of energy or enthalpy in one compiled loop
        results.py         RelaxationConfig; results of relaxations and their files
        relax.py           relax(): positions and cells of one structure or many
    engines/               one file for each program that asks us for forces
        ase.py             ASE calculator
        jaxmd.py           energy and neighbours in jax-md's calling convention
        ipi.py             client of i-PI and other engines that ask through a socket
        halo.py            one rank's part of a system that an engine has spread over many
        lammps.py          LAMMPS driven by a potential, on one rank or many
    screen.py              progress and tables on the terminal
    report/                one HTML page and JSON of a run, an evaluation, a simulation
        figures.py         matplotlib in, PNG or SVG out
        page.py            sections of text, tables and figures; how they are written
        probes.py          dimers, symmetries, derivatives, short dynamics, speed of a potential
        fit.py             reports of training and evaluation
        dynamics.py        report of a simulation
        compare.py         training runs side by side
    quickstart.py          the whole job on the data inside the package
    commands/              flags and calls of each command
        overwriting.py     what becomes of files that exist
        train.py           mlip train
        check.py           mlip check
        evaluate.py        mlip evaluate
        report.py          mlip report
        compare.py         mlip compare
        md.py              mlip md
        relax.py           mlip relax
        info.py            mlip info
        init.py            mlip init
        serve.py           mlip serve
        import_mace.py     mlip import-mace
        selftest.py        mlip selftest
        quickstart.py      mlip quickstart
    cli.py                 the command line: which command, and how errors are told
"""

import importlib

_HOMES = {
    "Structure": "mlip.data.structure",
    "from_ase": "mlip.data.structure",
    "to_ase": "mlip.data.structure",
    "LabelKeys": "mlip.data.labels",
    "read": "mlip.data.dataset",
    "check": "mlip.data.checks.doctor",
    "NetworkConfig": "mlip.model.mace.model",
    "Potential": "mlip.model.potential",
    "Prediction": "mlip.model.potential",
    "untrained": "mlip.model.potential",
    "LossConfig": "mlip.training.loss",
    "OptimizerConfig": "mlip.training.optimizer",
    "TrainConfig": "mlip.training.setup",
    "train": "mlip.training.loop",
    "save": "mlip.model.file",
    "load": "mlip.model.file",
    "fold": "mlip.model.fold",
    "Calculator": "mlip.engines.ase",
    "run": "mlip.simulation.dynamics",
    "DynamicsConfig": "mlip.simulation.setup",
    "Start": "mlip.simulation.setup",
    "Trajectory": "mlip.simulation.trajectory",
    "relax": "mlip.relaxation.relax",
    "RelaxationConfig": "mlip.relaxation.results",
    "metrics": "mlip.training.evaluation",
    "parity": "mlip.training.evaluation",
    "energy_fn": "mlip.engines.jaxmd",
    "neighbor_fn": "mlip.engines.jaxmd",
    "compiler_options": "mlip.programs",
    "Graph": "mlip.data.graph",
    "Outputs": "mlip.model.outputs",
    "TermsConfig": "mlip.model.terms",
    "register": "mlip.model.contract",
    "smooth_cutoff": "mlip.model.radial",
}
_RENAMED = {"save": "save_model", "load": "load_model"}

__all__ = list(_HOMES)


def __getattr__(name):
    """Import a public name from its home when it is first used, so that `import mlip` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mlip' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), _RENAMED.get(name, name))


def __dir__():
    return sorted({*globals(), *_HOMES})
