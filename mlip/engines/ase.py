"""ASE calculator of a potential."""

import warnings

import numpy as np
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mlip.data.graph import Shape, build_table
from mlip.data.neighbors import table_holds
from mlip.data.structure import from_ase
from mlip.model.file import load_model
from mlip.model.fold import fold
from mlip.model.mace.tables import NoTables
from mlip.model.potential import Potential, double_sums, round_up
from mlip.model.spread import whole_shares
from mlip.programs import keep_compiled_programs
from mlip.simulation.neighbors import narrow, with_spare


class Calculator(AseCalculator):
    """Energies, forces and stress of any `ase.Atoms`, one after another.

    `energy` and `free_energy` (eV), `energies` (eV), `forces` (eV/Å) and `stress` (eV/Å³, Voigt's
    order and ASE's sign; only for cells with a volume); `dipole` (e·Å) of molecules, where the
    model predicts it, by a second evaluation when it is asked for. The compiled program is kept as
    long as the atoms fit its padded size, and for later processes in a cache, by jax for the whole
    process (see `mlip.programs.keep_compiled_programs`); the neighbour table as long as elements
    and periodicity are the same and no pair can have come within the cutoff from beyond the skin.

    Args:
      model: path of a model file, or a `Potential`.
      dtype: "float32" or "float64"; the model's own by default.
      skin: Å added to the cutoff of the neighbour table; 0 builds it anew at every step.
      folded: compute with the folded potential (see `mlip.fold`), several times faster. Where its
        tables would be too large, as for dozens of species whose every pair has its own, the
        calculator says so in a warning and computes with the potential as it is.
      devices: of jax, over which a folded potential spreads the atoms; by default all of the
        process's where that is faster.

    Raises:
      FileNotFoundError, ValueError: no such model, a damaged one, a negative skin, or devices for a
        potential that is not folded.
    """

    implemented_properties = ("energy", "free_energy", "energies", "forces", "stress")

    def __init__(self, model, dtype=None, skin=0.5, folded=True, devices=None):
        super().__init__()
        keep_compiled_programs()
        if not (np.isfinite(skin) and skin >= 0):
            raise ValueError(f"skin is {skin} Å; it must be zero or positive (0.5 Å is usual)")
        is_potential = isinstance(model, Potential)
        self.potential = model.with_dtype(dtype) if is_potential else load_model(model, dtype)
        if "dipole" in self.potential.model.quantities:
            self.implemented_properties = (*self.implemented_properties, "dipole")
        self.skin = float(skin)
        if devices is not None and not folded:
            raise ValueError("only a folded potential is spread over devices; leave them away")
        self.folded = folded
        self.devices = devices
        self.used = self.potential  # what is computed with
        self.shape, self.width = Shape(1, 1, 2), 1
        self.reference = None  # the structure for which the table was built

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fill `self.results` for the atoms; see `ase.calculators.calculator.Calculator`.

        Raises:
          ValueError: an element the potential does not know, or atoms that coincide.
          PropertyNotImplementedError: stress asked for without a periodic cell with a volume.
          FloatingPointError: the potential gives a number that is not finite.
          MemoryError: the system does not fit into memory.
        """
        super().calculate(atoms, properties, system_changes)
        structure = from_ase(self.atoms, name=f"the structure {self.atoms.symbols}")
        if "stress" in properties and not np.isfinite(structure.volume):
            raise PropertyNotImplementedError(
                "there is no stress without a periodic cell of finite volume; set atoms.cell and "
                "atoms.pbc"
            )
        results = {}
        if "dipole" in properties:
            results["dipole"] = self._dipole(structure)
            if set(properties) == {"dipole"} and not system_changes:
                self.results |= results
                return
        self._fold_for(structure)
        self._update_table(structure)
        frame = (self.used.species_of(structure), structure, self.table)
        prediction = self.used.split(self.used.evaluate(self._graph(frame)), [frame])[0]
        self.results = results | {
            "energy": prediction.energy,
            "free_energy": prediction.energy,
            "energies": prediction.energies,
            "forces": prediction.forces,
        }
        if prediction.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress)

    def _dipole(self, structure):
        """By the network as it is, for folded ones have energies alone."""
        found = self.potential.predict([structure])[0].value("dipole")
        if found is None:
            raise PropertyNotImplementedError(
                "a periodic cell has no dipole moment but for multiples of its vectors; set "
                "atoms.pbc = False for a molecule"
            )
        return found

    def _fold_for(self, structure):
        """Have the tables hold the structure's elements besides those met before."""
        self.potential.species_of(structure)
        if self.folded:
            met = set() if self.used is self.potential else set(self.used.species)
            needed = met.union(structure.numbers.tolist())
            if needed != met:
                try:
                    self.used = fold(self.potential, needed, devices=self.devices)
                except NoTables as reason:
                    warnings.warn(f"computing with the unfolded potential: {reason}", stacklevel=2)
                    self.folded, self.used = False, self.potential

    def _graph(self, frame):
        """The padded graph, without the edges of the skin, which would cost and give nothing."""
        cutoff = self.potential.cutoff
        graph = self.used.graph([frame], self.shape)
        if self.skin == 0:
            return graph
        within = ((graph.displacement**2).sum(axis=-1) < cutoff**2).sum(axis=1).max()
        if within > self.width:
            self.width = with_spare(within)
        with double_sums():
            return narrow(graph, cutoff, self.width)[0]

    def _update_table(self, structure):
        cutoff = self.potential.cutoff
        old = self.reference
        if old is not None and table_holds(old, structure, cutoff, self.skin):
            return
        self.table = build_table(structure, cutoff + self.skin)
        self.reference = structure
        n_atoms, width = self.table.size()
        if n_atoms > self.shape.n_atoms or width > self.shape.max_neighbors:
            # Room for a tenth more neighbours, so that fluctuations compile nothing.
            n_atoms = whole_shares(n_atoms, self.used.sharing(n_atoms))
            self.shape = Shape(
                max(n_atoms, self.shape.n_atoms),
                max(round_up(-(-11 * width // 10)), self.shape.max_neighbors),
                2,
            )
