"""Networks that were fine-tuned, inside the ``.featx`` file of their model."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from featx.backbones.model_zip import NETWORK, OWN_NETWORK, open_model_zip, read_description
from featx.exceptions import WeightsError, reason
from featx.files.plain_network import require_plain_network
from featx.spec import FeatureSpec


@dataclass(frozen=True, slots=True)
class TunedFile:
    """What a ``.featx`` file says of the network in it.

    Parameters
    ----------
    path : Path
        The file.
    spec : FeatureSpec
        Of the features that the network makes.
    architecture : str
        Its name in the catalogue, empty where it has none.
    member : str
        `NETWORK` or `OWN_NETWORK` of `featx.backbones.model_zip`.
    sha256 : str
        Digest of the member's bytes, as the file states it; `unpacked` checks it.
    """

    path: Path
    spec: FeatureSpec
    architecture: str
    member: str
    sha256: str


def is_tuned_file(path: str | os.PathLike[str] | None) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a path is that of a model of featx, by its name."""
    return path is not None and Path(path).suffix == ".featx"


def read_tuned(path: str | os.PathLike[str]) -> TunedFile:
    """Read what a ``.featx`` file says of the network in it.

    Raises
    ------
    WeightsError
        If there is no such file, it is damaged, or the model in it was not fine-tuned.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise WeightsError(f"expected a fine-tuned model, received {str(path)!r}, which is no file")
    try:
        with open_model_zip(file) as archive:
            said = read_description(archive)
        stated = said["files"]
        member = next((name for name in (NETWORK, OWN_NETWORK) if name in stated), None)
        spec, digest = FeatureSpec.from_dict(said["spec"]), stated.get(member, "")
        architecture = str(said["network"]["architecture"]) if member else ""
    # `zipfile` has no base of its errors: damage shows as any of ten types.
    except Exception as error:
        raise WeightsError(
            f"{file} is no model saved by featx, or is damaged: {reason(error)}"
        ) from error
    if member is None:
        raise WeightsError(
            f"{file} holds a head and no network, as the backbone is {spec.backbone} as it was "
            "published: name that backbone, or a model that `featx finetune` made"
        )
    if digest != spec.weights_sha256:
        raise WeightsError(
            f"{file} states another digest of its network than its specification does: it was "
            "changed; fine-tune again, or take a copy"
        )
    return TunedFile(file, spec, architecture, member, digest)


def member_bytes(tuned: TunedFile) -> bytes:
    """Return the network's bytes, checked against the digest.

    Raises
    ------
    WeightsError
        If they differ, are compressed, or HDF5 in them points out of the file.
    """
    try:
        with open_model_zip(tuned.path) as archive:
            data = archive.read(tuned.member)
    except Exception as error:
        raise WeightsError(f"{tuned.path} is damaged: {reason(error)}") from error
    if hashlib.sha256(data).hexdigest() != tuned.sha256:
        raise WeightsError(
            f"{tuned.path}: {tuned.member} does not have the digest stated with it: it was damaged "
            "or changed; take another copy"
        )
    try:
        require_plain_network(io.BytesIO(data), tuned.member)
    except Exception as error:
        raise WeightsError(f"{tuned.path}: {tuned.member} is refused: {reason(error)}") from error
    return data


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Give a path that Keras can read the network of a ``.featx`` file from.

    Raises
    ------
    WeightsError
        As `read_tuned`, and if the network's bytes do not have their digest.
    """
    tuned = read_tuned(path)
    data = member_bytes(tuned)
    with tempfile.TemporaryDirectory(prefix="featx-") as folder:
        found = Path(folder) / tuned.member
        found.write_bytes(data)
        yield found
