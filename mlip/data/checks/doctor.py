"""check(): all that is wrong or suspicious in a data set, and mend(): what can be put right."""

from collections import Counter
from pathlib import Path

from mlip.data.checks import consistency, geometry, labels, scales, stress, sufficiency
from mlip.data.checks.findings import GRADES, Finding, Report, counted, refusal
from mlip.data.checks.sample import survey
from mlip.data.checks.summary import summarize
from mlip.data.dataset import atomic_energies, files_of, split_isolated
from mlip.data.labels import (
    LabelKeys,
    choose_key,
    read_file,
    structure_of,
    write_frames,
)
from mlip.data.quantities import QUANTITIES
from mlip.data.structure import Unusable
from mlip.files import atomic_write

# Errors that numbers speak for, but that a set made on purpose may have.
JUDGEMENTS = {
    "equal-energies",
    "length-unit",
    "reference-energies",
    "stress-order",
    "stress-sign",
    "stress-unit",
    "units",
    "zero-forces",
}
LONGEST_CUTOFF = 20.0  # Å, that of the network
# Frames that these refuse are left out by `mend`; whatever else is an error it cannot put right.
MENDABLE = {
    "asymmetric-stress",
    "coincident-atoms",
    "no-atoms",
    "no-cell",
    "not-finite",
    "not-numbers",
    "too-large",
    "unknown-element",
    "wrong-shape",
}


def check(path, keys=LabelKeys(), cutoff=5.0, e0="auto", against=None, predict=None):
    """Look a data set over: labels, geometry, sufficiency, consistency.

    Args:
      path: file or folder.
      keys: where its labels are, and in which units.
      cutoff: Å, of the potential to be trained.
      e0: energies of single atoms, as in `mlip.data.dataset.atomic_energies`; None where a
        potential brings its own, which then are not judged.
      against: another file or folder that must not share frames with this one.
      predict: function from a list of structures to their `Prediction`s, whose stress is compared
        with the labels.

    Returns:
      a `Report`.

    Raises:
      FileNotFoundError: no such file or folder.
      ValueError: a cutoff that is not positive or too long.
    """
    if not 0 < cutoff <= LONGEST_CUTOFF:
        raise ValueError(
            f"cutoff is {cutoff} Å; it must be positive and at most {LONGEST_CUTOFF:g} Å"
        )
    frames, found = _open(Path(path))
    chosen, more = _choose(path, keys, frames)
    found += more
    frames, structures, refused = _structures(frames, chosen, keys)
    found += refused
    places = [_place(frame) for frame in frames]
    if chosen:
        found += labels.keys(frames, chosen, keys)
        found += labels.free_energies(frames, places, chosen, keys)
    if not structures:
        return _report(path, {"frames": 0}, found, frames, structures)
    sample = survey(structures, places, keys, cutoff)
    found += _merged(sample.refused)
    energies, more = _energies(e0, sample, keys)
    found += more
    found += labels.missing(sample, chosen) + labels.energies(sample) + labels.forces(sample)
    found += labels.references(sample, energies) + labels.rank(sample, energies)
    found += geometry.close_atoms(sample) + geometry.lonely_atoms(sample) + geometry.cells(sample)
    found += geometry.repeated(sample) + geometry.outliers(sample)
    found += sufficiency.rare(sample) + sufficiency.strains(sample) + sufficiency.sizes(sample)
    found += sufficiency.neighbors(sample)
    found += _consistency(sample)
    if against is not None:
        found += _leaks(sample, Path(against), keys)
    if predict is not None:
        found += stress.against_model(sample, predict)
    return _report(path, summarize(sample, chosen, energies), found, frames, structures)


def _report(path, summary, found, frames, structures):
    found = sorted(found, key=lambda finding: GRADES.index(finding.grade))
    return Report(str(path), summary, tuple(found), frames, structures)


def _place(frame):
    return str(frame.file), frame.index


def _open(path):
    """All frames that can be read, and findings of files that cannot."""
    frames, found = [], []
    try:
        files = files_of(path)
    except Unusable as error:
        return [], [refusal(error, path, (str(path), None))]
    for file in files:
        try:
            frames += read_file(file)
        except Unusable as error:
            found.append(refusal(error, file, (str(file), None)))
    if not frames and not found:
        remedy = "give a file with at least one structure"
        found.append(Finding("error", "no-frames", f"{path} holds no frames", remedy))
    return frames, found


def _merged(findings):
    """One finding for each rule and remedy, with the first message and all frames."""
    merged = {}
    for finding in findings:
        merged.setdefault((finding.check, finding.remedy), []).append(finding)
    return [
        Finding(
            same[0].grade,
            check,
            same[0].message + (f", and {len(same) - 1} more like it" if len(same) > 1 else ""),
            remedy,
            tuple(place for finding in same for place in finding.frames),
        )
        for (check, remedy), same in merged.items()
    ]


def _choose(path, keys, frames):
    """The key of each label, and findings of labels that have none or several."""
    chosen, found = {}, []
    for kind in QUANTITIES if frames else ():
        try:
            chosen[kind] = choose_key(kind, keys.key(kind), frames, path)
        except Unusable as error:
            found.append(Finding("error", error.rule, error.problem, error.remedy))
    return chosen, found


def _structures(frames, chosen, keys):
    """Frames that can be used and their structures, without labels that cannot."""
    usable, structures, refused = [], [], []
    for frame in frames:
        try:
            structure = structure_of(frame, chosen, keys)
        except Unusable:
            structure, errors = _without_bad_labels(frame, chosen, keys)
            refused += [refusal(error, frame.name, _place(frame)) for error in errors]
        if structure is not None:
            usable.append(frame)
            structures.append(structure)
    return usable, structures, _merged(refused)


def _without_bad_labels(frame, chosen, keys):
    """The structure of a frame with the labels that can be used, or None, and what is refused."""
    try:
        structure_of(frame, {}, keys)
    except Unusable as error:
        return None, [error]
    good, errors = {}, []
    for kind, key in chosen.items():
        try:
            structure_of(frame, {kind: key}, keys)
            good[kind] = key
        except Unusable as error:
            errors.append(error)
    return structure_of(frame, good, keys), errors


def _energies(e0, sample, keys):
    """`AtomicEnergies` of the set, or None where there are none, and findings."""
    refused = {place for finding in sample.refused for place in finding.frames}
    usable = [s for s, place in zip(sample.structures, sample.places) if place not in refused]
    train, isolated = split_isolated(usable, sample.cutoff)
    if e0 is None or not train or not sample.having("energy"):
        return None, []
    try:
        return atomic_energies(e0, train, isolated, keys), []
    except Unusable as error:
        return None, [Finding("error", error.rule, error.problem, error.remedy)]


def _consistency(sample):
    pairs = consistency.close_pairs(sample)
    far = consistency.jumps(pairs, sample.n_atoms[pairs.first])
    jumps, pairs = scales.jumps(sample, pairs, far), pairs[~far]
    fit = consistency.fit_work(pairs)
    found = scales.units(sample, pairs, fit) + scales.unrelated(sample, pairs, fit)
    # With these wrong, the stress cannot be judged.
    found = found or stress.against_energies(sample, pairs, fit) or stress.against_density(sample)
    return jumps + (found or stress.of_slabs(sample))


def _leaks(sample, path, keys):
    """Frames that another set holds too; its own findings are not this set's."""
    frames, found = _open(path)
    frames, structures, _ = _structures(frames, {}, keys)
    if found or not structures:
        return found
    other = survey(structures, [_place(f) for f in frames], keys, sample.cutoff)
    return geometry.leaked(sample, other, path)


def mend(report, path):
    """Write a checked set anew: eV, Å and ASE's names, frames once, unusable ones left out.

    Args:
      report: what `check` returned.
      path: file to write.

    Returns:
      lines that say what was done.

    Raises:
      ValueError: an error that only its author can put right, such as an unknown unit.
    """
    for finding in report.graded("error"):
        if finding.check not in MENDABLE:
            raise ValueError(f"cannot mend {report.data}: {finding}")
    by_check = {finding.check: finding.frames for finding in report.findings}
    repeated = set(by_check.get("duplicate-frames", ()))
    touching = set(by_check.get("coincident-atoms", ()))
    kept = [
        (frame, structure)
        for frame, structure in zip(report.frames, report.structures)
        if _place(frame) not in repeated | touching
    ]
    if not kept:
        raise ValueError(f"cannot mend {report.data}: no frame is left")
    with atomic_write(path) as temporary:
        lost = write_frames(temporary, *zip(*kept))
    lost -= {label["key"] for label in report.summary["labels"].values()}
    unusable = {place for finding in report.graded("error") for place in finding.frames}
    places = {_place(frame) for frame, _ in kept}
    gone = Counter(
        {
            "left out, since they repeat an earlier one": len(repeated),
            "left out, since they cannot be used": len(unusable - places),
            "kept without a label that cannot be used": len(unusable & places),
        }
    )
    lines = [f"{what}: {counted(count, 'frame')}" for what, count in gone.items() if count]
    if lost:
        lines.append(
            f"left out the keys {', '.join(sorted(lost))}, which would be taken for labels or are "
            "in units that are not known"
        )
    names = ", ".join(
        kind for kind in QUANTITIES if any(s.label(kind) is not None for _, s in kept)
    )
    wrote = f"wrote {counted(len(kept), 'frame')} with {names or 'no labels'} in eV and Å to {path}"
    return [*lines, wrote]
