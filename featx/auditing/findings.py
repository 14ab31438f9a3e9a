"""What an audit says of a dataset: findings, JSON, and a table that commands act on."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from featx.exceptions import DatasetError, UnknownNameError
from featx.files.outputs import Recognise, begins_with, written_whole
from featx.files.safe_json import Json
from featx.images.tables import Table

Severity: TypeAlias = Literal["error", "warning", "note"]
Action: TypeAlias = Literal["relabel", "remove"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
ACTIONS: tuple[Action, ...] = ("relabel", "remove")
_COLUMNS = (
    "finding", "kind", "severity", "action", "path", "label", "new_label", "split", "score",
    "evidence",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding: a row of `KINDS`."""

    severity: Severity
    title: str  # what its findings are, after their number
    advice: str = ""  # what to do, as a sentence
    command: str = ""  # what acts on it; {name} is the dataset


# In the order in which a person would look at them.
KINDS: dict[str, Kind] = {
    "unreadable": Kind(
        "error",
        "images that cannot be read",
        "Replace the files, or leave them out.",
        "featx dataset remove {name} --status failed",
    ),
    "moved": Kind(
        "error",
        "images that were relabelled and have moved to another class folder since",
        "The label given by hand is kept. Give the right one again.",
        "featx dataset relabel {name} --from audit.csv",
    ),
    "contradiction": Kind(
        "error",
        "groups of equal images with different labels",
        "An image of one group has one label.",
        "featx dataset relabel {name} --from audit.csv",
    ),
    "leak": Kind(
        "error",
        "groups of equal images in different splits",
        "Scores on such images are too good. Leave the copies out of training.",
        "featx dataset remove {name} --from audit.csv",
    ),
    "near-leak": Kind(
        "error",
        "pairs of nearly equal images in different splits",
        "Scores on such images are too good. Leave the copies out of training.",
        "featx dataset remove {name} --from audit.csv",
    ),
    "near-contradiction": Kind(
        "warning",
        "pairs of nearly equal images with different labels",
        "Look at each pair, and write the right label into new_label.",
        "featx dataset relabel {name} --from audit.csv",
    ),
    "label": Kind(
        "warning",
        "images whose label the other images contradict",
        "Look at each. Delete the lines of those that are right.",
        "featx dataset relabel {name} --from audit.csv",
    ),
    "class-names": Kind(
        "warning",
        "groups of classes whose names look alike",
        "Join them if they are one class.",
    ),
    "class-features": Kind(
        "warning",
        "pairs of classes whose images look alike",
        "Join them if they are one class, or look at their images.",
    ),
    "blank": Kind(
        "warning",
        "images of one colour, or nearly",
        "Leave them out.",
        "featx dataset remove {name} --from audit.csv",
    ),
    "few": Kind(
        "warning",
        "parts of the data that are too small to measure",
        "Add images of them.",
    ),
    "dark": Kind("note", "images that are nearly black", "Look at them."),
    "bright": Kind("note", "images that are nearly white", "Look at them."),
    "blurred": Kind("note", "images that are much less sharp than the others", "Look at them."),
    "tiny": Kind("note", "images that are smaller than the network sees", "Look at them."),
    "aspect": Kind(
        "note",
        "images that are very wide or very tall",
        "The network sees them squeezed. Cut them, or take --resize crop.",
    ),
    "duplicate": Kind(
        "note",
        "groups of equal images",
        "They count several times. Keep one of each.",
        "featx dataset remove {name} --status duplicate",
    ),
    "near-duplicate": Kind(
        "note",
        "pairs of nearly equal images",
        "They count twice. Keep one of each.",
        "featx dataset remove {name} --from audit.csv",
    ),
    "outlier": Kind(
        "note",
        "images unlike all others",
        "Look at each. Write remove into the column action for those that do not belong.",
        "featx dataset remove {name} --from audit.csv",
    ),
    "imbalance": Kind(
        "note",
        "imbalances of the classes",
        "Accuracy hides the small classes. Look at balanced accuracy, and weight the classes.",
        "featx train {name} --head logistic:class_weight=balanced",
    ),
}


@dataclass(frozen=True, slots=True)
class AuditedImage:
    """An image that a finding is about.

    Parameters
    ----------
    row : int
        Its row in the features; -1 for an image that could not be read.
    path, label, split : str
        What is known of it; empty text for none.
    action : {"", "relabel", "remove"}
        What `featx dataset relabel|remove --from` does with it.
    new_label : str
        The label that it gets.
    """

    row: int
    path: str
    label: str = ""
    split: str = ""
    action: Literal["", "relabel", "remove"] = ""
    new_label: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is doubtful in a dataset.

    Parameters
    ----------
    kind : str
        A key of `KINDS`.
    evidence : str
        What speaks for it, as a sentence.
    images : tuple of AuditedImage
        The images that it is about; none where it is about classes.
    classes : tuple of str
        The classes that it is about.
    score : float, optional
        How sure it is, or how strong, from 0 to 1; more is worse.
    command : str
        The command that acts on it.
    """

    kind: str
    evidence: str
    images: tuple[AuditedImage, ...] = ()
    classes: tuple[str, ...] = ()
    score: float | None = None
    command: str = ""

    @property
    def severity(self) -> Severity:
        """How bad it is: an error of the data, a warning, or a note."""
        return KINDS[self.kind].severity

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows of its images in the features; -1 for one that could not be read."""
        return tuple(image.row for image in self.images)


@dataclass(frozen=True)
class Audit:
    """What is doubtful in a dataset, the worst first.

    Parameters
    ----------
    dataset : str
        Its name.
    images : int
        Number of images that have features.
    findings : list of Finding
        In the order of `KINDS`, within a kind the surest first.
    left_out : list of str
        What could not be looked at, and why, as sentences.
    checked : list of str
        What was looked at, as sentences.

    Examples
    --------
    >>> import featx
    >>> audit = featx.audit(featx.extract("photos/"))  # doctest: +SKIP
    >>> audit.counts(), audit.of("label")[0].evidence  # doctest: +SKIP
    >>> audit.write_csv("audit.csv")  # doctest: +SKIP
    """

    dataset: str
    images: int
    findings: list[Finding]
    left_out: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts().items())
        return f"<Audit of {self.dataset!r}: {counts or 'no findings'}>"

    def of(self, kind: str) -> list[Finding]:
        """Return the findings of one kind, the surest first."""
        if kind not in KINDS:
            raise UnknownNameError("kind of finding", kind, KINDS)
        return [finding for finding in self.findings if finding.kind == kind]

    def counts(self) -> dict[str, int]:
        """Return the number of findings of each kind that there is."""
        counts = Counter(finding.kind for finding in self.findings)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    def to_dict(self) -> Json:
        """Return all of it as JSON types."""
        return {
            "dataset": self.dataset,
            "images": self.images,
            "counts": self.counts(),
            "findings": [
                {"severity": finding.severity, **asdict(finding)} for finding in self.findings
            ],
            "checked": self.checked,
            "left_out": self.left_out,
        }

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a line for each image of each finding, for `featx dataset relabel|remove --from`.

        Findings about classes name no image and are not in it.
        """
        with (
            written_whole(Path(path)) as temporary,
            temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            # All text in quotes: blanks at the ends of a name stay.
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            writer.writerow(_COLUMNS)
            for number, finding in enumerate(self.findings, 1):
                score = "" if finding.score is None else round(finding.score, 6)
                for image in finding.images:
                    writer.writerow([
                        number, finding.kind, finding.severity, image.action, image.path,
                        image.label, image.new_label, image.split, score, finding.evidence,
                    ])  # fmt: skip


_PLAIN, _QUOTED = list(_COLUMNS[:5]), [f'"{name}"' for name in _COLUMNS[:5]]
is_audit: Recognise = begins_with(*(m.join(c) for m in ",;\t" for c in (_PLAIN, _QUOTED)))
"""Tells whether a file is the table of an audit."""


def read_decisions(file: Path, action: Action) -> dict[str, str]:
    """Return the paths of the lines with an action in the table of an audit, with their new label.

    Raises
    ------
    DatasetError
        If it is no such table, has an action without its label, or two labels for one path.
    UnknownNameError
        If it has an action that there is not.
    """
    table = Table(file)
    for column in ("path", "action", *(["new_label"] if action == "relabel" else [])):
        if column not in table.header:
            raise DatasetError(
                f"expected the table of `featx audit --csv` with the column {column!r} in "
                f"{str(file)!r}, received {', '.join(table.written)[:100]}; for a table with the "
                "columns path and label take --labels"
            )
    decisions: dict[str, tuple[int, str]] = {}
    for line, path, label in _lines(table, action):
        before = decisions.setdefault(path, (line, label))
        if before[1] != label:
            raise DatasetError(
                f"{str(file)!r}, lines {before[0]} and {line}: {path[-80:]!r} gets two labels, "
                f"{before[1][:40]!r} and {label[:40]!r}: leave one line"
            )
    return {path: label for path, (_, label) in decisions.items()}


def _lines(table: Table, action: Action) -> Iterator[tuple[int, str, str]]:
    """Yield number, path and new label of the lines with an action."""
    path_at, action_at = table.header.index("path"), table.header.index("action")
    label_at = table.header.index("new_label") if action == "relabel" else None
    for line, row in table.rows():
        stated = row[action_at].strip().lower()
        if stated and stated not in ACTIONS:
            raise UnknownNameError(
                "action", stated, ACTIONS, hint=f"See {table.at(line)}; leave it empty for none"
            )
        if stated != action:
            continue
        label = "" if label_at is None else table.cell(line, "new_label", row[label_at].strip())
        if label_at is not None and not label:
            raise DatasetError(
                f"{table.at(line)}: expected a class in new_label for {row[path_at][-80:]!r}, "
                "received none: write one, or delete the line"
            )
        yield line, row[path_at], label


def by_importance(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings in the order of `KINDS`, the surest of each kind first."""
    order = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda finding: (order[finding.kind], -(finding.score or 0.0)))
