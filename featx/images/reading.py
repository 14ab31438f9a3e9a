"""How data are read: what names of splits mean, and which columns of a table are what."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from featx.exceptions import DatasetError
from featx.images.labels import SplitNames

StrPath = str | os.PathLike[str]
COLUMNS = ("path", "label", "split", "group")
"""What a column of a table may be, and its usual name."""
_TABLES = ("table", "frame", "parquet")


class ReadingOptions(TypedDict, total=False):
    """How data are read, as keyword arguments of the functions that learn from them.

    All fields of `Reading` but `multilabel`, which says there what is learnt.
    """

    splits: SplitNames
    root: StrPath | None
    target_columns: Sequence[str]
    path_column: str | None
    label_column: str | None
    split_column: str | None
    group_column: str | None
    follow_urls: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How data are read; see `ImageDataset.from_any` for the fields."""

    splits: SplitNames = None
    root: StrPath | None = None
    multilabel: bool = False
    target_columns: Sequence[str] = ()
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    follow_urls: bool = False

    @classmethod
    def taken(cls, options: dict[str, Any]) -> Reading:
        """Take the fields out of the options of a function or a command."""
        names = [field.name for field in fields(cls) if field.name in options]
        return cls(**{name: options.pop(name) for name in names})

    @property
    def options(self) -> dict[str, Any]:
        """The fields as keyword arguments of `ImageDataset.from_any` and `featx.extract`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def columns(self) -> Mapping[str, str]:
        """The columns that are named, by what they are."""
        named = {kind: getattr(self, f"{kind}_column") for kind in COLUMNS}
        return {kind: name for kind, name in named.items() if name is not None}

    def check_used(self, kind: str, what: str) -> None:
        """Refuse options that mean nothing for data of a kind, named `what` in the error."""
        needless = {
            "--root (root=...) is for the paths of a table": self.root,
            "--target-column (target_columns=...) names columns of a table": self.target_columns,
            **{
                f"--{kind}-column ({kind}_column=...) names a column of a table": name
                for kind, name in self.columns.items()
            },
        }
        refused = [text for text, value in needless.items() if value and kind not in _TABLES]
        if self.splits is not None and kind in ("dataset", "features", "files", "arrays"):
            text = "--splits (splits=...) is for a folder, a table or a file of arrays"
            refused.append(text)
        if refused:
            raise DatasetError(f"{refused[0]}, received {what}: leave it out")
