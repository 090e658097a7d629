"""What a check says: findings, and the report they make together."""

from dataclasses import dataclass

GRADES = ("error", "warning", "note")
SCHEMA = "mlip check 1"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or suspicious in a data set."""

    grade: str  # error: training would fail or be wrong; warning: look at it; note: know it
    check: str  # the rule in a word, stable, such as duplicate-frames
    message: str  # what was found, with the value
    remedy: str
    frames: tuple[tuple[str, int | None], ...] = ()  # (file, index); none: the set as a whole

    def __str__(self):
        where = f" ({listed(self.frames)})" if self.frames else ""
        return f"{self.check}: {self.message}{where}; {self.remedy}"


def refusal(error, name, place):
    """The finding of an `Unusable`; the frame of this name is told by its place alone."""
    return Finding(
        "error", error.rule, error.problem.removeprefix(f"{name}: "), error.remedy, (place,)
    )


def counted(n, noun, verb=""):
    """Such as "1 frame repeats" and "31 frames repeat"."""
    singular = {"are": "is", "have": "has"}.get(verb, f"{verb}s")
    return f"{n} {noun}{'' if n == 1 else 's'}" + (verb and f" {singular if n == 1 else verb}")


def listed(frames, most=5):
    """A text such as "train.xyz#3, #7 to #12 and 4 more" of (file, index)."""
    runs = []
    for file, index in frames:
        last = runs[-1] if runs else None
        if last and index is not None and last[0] == file and last[2] == index - 1:
            last[2] = index
        else:
            runs.append([file, index, index])
    parts, named, before = [], 0, None
    for file, first, last in runs[:most]:
        name = "" if file == before else str(file).rpartition("/")[2]
        parts.append(name if first is None else f"{name}#{first}")
        parts[-1] += f" to #{last}" if first != last else ""
        named, before = named + (1 if first is None else last - first + 1), file
    rest = len(frames) - named
    return ", ".join(parts) + (f" and {rest} more" if rest else "")


def error_text(path, errors):
    """One message for the errors of a set."""
    count = f"{len(errors)} errors" if len(errors) > 1 else "an error"
    return f"{path} has {count}: " + "; and ".join(map(str, errors))


@dataclass(frozen=True)
class Report:
    """What a data set holds, and what was found in it."""

    data: str  # path
    summary: dict  # of numbers, texts and dictionaries of them
    findings: tuple[Finding, ...]  # errors first, then warnings, then notes
    frames: list  # the usable frames
    structures: list  # of them; as `mlip.read` gives them where all are usable

    def graded(self, grade):
        return [finding for finding in self.findings if finding.grade == grade]

    def table(self):
        """Everything as dictionaries and lists for JSON.

        Returns:
          `schema` ("mlip check 1"; the number rises when a key changes its meaning or goes),
          `data`, `summary`, `counts` (of each grade), and `findings`: a list of {grade, check,
          message, remedy, frames}, with frames a list of {file, index}. Frames are counted from 0
          in each file; index is null where a file could not be read at all. No frames: the
          finding is about the set as a whole.
        """
        return {
            "schema": SCHEMA,
            "data": self.data,
            "summary": self.summary,
            "counts": {grade: len(self.graded(grade)) for grade in GRADES},
            "findings": [
                {
                    "grade": finding.grade,
                    "check": finding.check,
                    "message": finding.message,
                    "remedy": finding.remedy,
                    "frames": [{"file": file, "index": index} for file, index in finding.frames],
                }
                for finding in self.findings
            ],
        }
