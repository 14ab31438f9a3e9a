"""Where a backbone's weights come from, and the digest that identifies them."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from featx.backbones.catalog import Backbone
from featx.backbones.registry import find_backbone
from featx.backbones.tuned import is_tuned_file, read_tuned
from featx.backbones.wrong_files import require_weights_file
from featx.exceptions import WeightsError, reason
from featx.files.stamps import is_settled, stamp_of
from featx.quiet import quiet_import
from featx.terminal import unguarded

RANDOM_RECIPE = "featx-random-weights-2"
BUNDLED = "tiny"
_LOGGER = logging.getLogger("featx")
_digests: dict[tuple[str | int, ...], str] = {}
_SUFFIXES = (".weights.h5", ".h5", ".hdf5", ".keras", ".featx")


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that have been found.

    Parameters
    ----------
    source : str
        What was asked for: ``"imagenet"``, ``"bundled"``, ``"random:0"`` or a path.
    sha256 : str
        SHA-256 of the file, of all files of a folder, or of the recipe for random weights.
    path : Path or None
        The file or folder; None for random weights.
    seed : int or None
        Seed of random weights.
    """

    source: str
    sha256: str
    path: Path | None = None
    seed: int | None = None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits.

    The same process reads a file again only when its stamp has changed; see `featx.files.stamps`.
    """
    looked_ns = time.time_ns()
    stamp = stamp_of(path.stat())
    state = (str(path.absolute()), *stamp)
    digest = _digests.get(state)
    if digest is None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if is_settled(stamp, looked_ns):
            _digests[state] = digest
    return digest


def folder_sha256(folder: Path) -> str:
    """Return the SHA-256 of the names and bytes of all files below a folder.

    It is that of one line a file, sorted by path: the file's own SHA-256 in hexadecimal digits, two
    spaces, the path below the folder with ``/``, and a zero byte.

    Raises
    ------
    WeightsError
        If something cannot be read, or is neither a file nor a folder.
    """
    found: dict[bytes, str] = {}
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                found[os.fsencode(path.relative_to(folder).as_posix())] = file_sha256(path)
            elif not path.is_dir() or path.is_symlink():
                raise WeightsError(
                    f"expected files and folders in {folder}, received {path}, a link to a folder "
                    "or something else: copy the folder with what its links lead to"
                )
    except OSError as error:
        raise WeightsError(f"{folder} cannot be read: {reason(error)}") from error
    lines = [f"{found[name]}  ".encode() + name + b"\0" for name in sorted(found)]
    return hashlib.sha256(b"".join(lines)).hexdigest()


def bundled_folder() -> Path:
    """Return the folder of the package that holds the bundled weights."""
    return Path(__file__).parent / "data"


def weights_places(row: Backbone) -> list[Path]:
    """Return the files that are tried for ``weights="imagenet"``, in order.

    The folder named by ``FEATX_WEIGHTS`` is asked first, for the published name and for
    ``NAME.weights.h5``; then Keras's own folder, where a download would put the file.
    """
    places = []
    if folder := os.environ.get("FEATX_WEIGHTS"):
        named = Path(folder).expanduser()
        places += [named / row.weights_file, named / f"{row.name}.weights.h5"]
    home = os.environ.get("KERAS_HOME")
    keras_home = Path(home).expanduser() if home else Path.home() / ".keras"
    return [*places, keras_home / "models" / row.weights_file]


def find_weights_file(row: Backbone) -> Path | None:
    """Return the file that a backbone's default weights are read from, or None where there is none.

    Nothing is downloaded.
    """
    places = [bundled_folder() / row.weights_file] if row.name == BUNDLED else weights_places(row)
    return next((path for path in places if path.is_file()), None)


def resolve_weights(row: Backbone, weights: str | os.PathLike[str] | None = None) -> Weights:
    """Find the weights of a backbone.

    Parameters
    ----------
    row : Backbone
        The backbone.
    weights : str or path, optional
        ``"imagenet"`` (the default, but for the bundled backbone): the published file, from the
        folder named by ``FEATX_WEIGHTS``, else from Keras's folder, else downloaded unless
        ``FEATX_OFFLINE`` is set. ``"bundled"``: the file that comes with featx. ``"random:SEED"``:
        drawn, and only when asked for. Anything else is a path: of a weights file, or of a model
        that was fine-tuned (``.featx``).

    Raises
    ------
    WeightsError
        If there is no such file, with its name and the places where it is looked for.
    """
    text = os.fspath(weights) if weights is not None else ""
    if not text:
        text = "imagenet" if row.weights_file and row.name != BUNDLED else "bundled"
    if text == "random" or text.startswith("random:"):
        return _random(text)
    if text == "bundled":
        return _bundled(row)
    if text == "imagenet":
        return _imagenet(row)
    return _file(row, text)


def _random(text: str) -> Weights:
    seed = text.removeprefix("random").removeprefix(":")
    if not (seed.isascii() and seed.isdigit()):
        raise WeightsError(f"random weights need a seed, as in 'random:0', received {text!r}")
    digest = hashlib.sha256(f"{RANDOM_RECIPE}:{int(seed)}".encode()).hexdigest()
    return Weights(f"random:{int(seed)}", digest, seed=int(seed))


def _bundled(row: Backbone) -> Weights:
    if row.name != BUNDLED:
        raise WeightsError(
            f"no weights of {row.name} come with featx: use --backbone {BUNDLED}, "
            "or --weights imagenet or a file"
        )
    path = bundled_folder() / row.weights_file
    if not path.is_file():
        raise WeightsError(
            f"the bundled weights are not where they belong, {path}: reinstall featx"
        )
    digest = file_sha256(path)
    if digest != row.weights_hash:
        raise WeightsError(
            f"the bundled weights are damaged: expected SHA-256 {row.weights_hash}, received "
            f"{digest} from {path}: reinstall featx"
        )
    return Weights("bundled", digest, path)


def _imagenet(row: Backbone) -> Weights:
    if row.name == BUNDLED:
        raise WeightsError(f"{row.name} has no ImageNet weights: leave --weights out for its own")
    path = find_weights_file(row)
    if path is not None:
        require_weights_file(path, "Remove it, and featx downloads it again")
        return Weights("imagenet", file_sha256(path), path)
    if os.environ.get("FEATX_OFFLINE"):
        raise WeightsError(missing_message(row, "FEATX_OFFLINE forbids the download"))
    path = _download(row)
    return Weights("imagenet", file_sha256(path), path)


def _download(row: Backbone) -> Path:
    with quiet_import():
        import keras
    _LOGGER.info("downloading %s", row.weights_url)
    # Keras draws its progress on standard output, which belongs to results.
    watched = sys.stderr is not None and sys.stderr.isatty()
    try:
        with redirect_stdout(unguarded(sys.stderr) if watched else io.StringIO()):
            found = keras.utils.get_file(
                row.weights_file,
                row.weights_url,
                cache_subdir="models",
                file_hash=row.weights_hash or None,
            )
    except Exception as error:  # urllib, ssl, socket and Keras each have errors of their own
        raise WeightsError(
            missing_message(row, f"the download failed ({reason(error)})")
        ) from error
    return Path(found)


def missing_message(row: Backbone, cause: str) -> str:
    """Return what to do about a weights file that is not here."""
    places = " or ".join(str(path) for path in weights_places(row))
    return (
        f"the ImageNet weights of {row.name} are not here, and {cause}. Download "
        f"{row.weights_url} to {places}; or name a file with --weights (weights=...), or a folder "
        f"with FEATX_WEIGHTS; or use the backbone that comes with featx: --backbone {BUNDLED}"
    )


def _file(row: Backbone, text: str) -> Weights:
    path = Path(text).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"expected a weights file for {row.name}, received {text!r}, which is no file: give a "
            "path, 'imagenet', 'bundled' or 'random:SEED'"
        )
    if not is_tuned_file(path):
        step = "Name another file with --weights (weights=...), or leave it out for ImageNet's"
        require_weights_file(path, step)
    if not path.name.endswith(_SUFFIXES):
        raise WeightsError(
            f"expected a weights file that ends in one of {', '.join(_SUFFIXES)}, received {path}"
        )
    if is_tuned_file(path):
        return _tuned(row, text, path)
    return Weights(str(path), file_sha256(path), path)


def _tuned(row: Backbone, text: str, path: Path) -> Weights:
    tuned = read_tuned(path)
    if tuned.architecture != row.name:
        raise WeightsError(
            f"{path} is a fine-tuned {tuned.architecture or tuned.spec.backbone}, not {row.name}: "
            f"use --backbone file:{path}, or another model"
        )
    return Weights(text, tuned.sha256, path)


def matching_weights(
    name: str, weights: str | os.PathLike[str] | None, sha256: str
) -> str | os.PathLike[str] | None:
    """Return a choice of weights that has a digest.

    Parameters
    ----------
    name : str
        A backbone of the catalogue.
    weights : str or path, optional
        What was chosen, see `resolve_weights`. A file may have moved since.
    sha256 : str
        The digest that is needed.

    Returns
    -------
    str or path, optional
        `weights`, unless it is a file that is not there or has another digest, and a file of the
        folder that ``FEATX_WEIGHTS`` names has it.
    """
    text = "" if weights is None else os.fspath(weights)
    row = find_backbone(name)
    if (row.name == BUNDLED and not text) or text.startswith("random") or text == "bundled":
        return weights
    path = Path(text).expanduser() if text not in ("", "imagenet") else find_weights_file(row)
    if path is not None and path.is_file() and _has_digest(path, sha256):
        return weights
    folder = Path(os.environ.get("FEATX_WEIGHTS") or os.devnull).expanduser()
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.name.endswith(_SUFFIXES) and file.is_file() and _has_digest(file, sha256):
            return str(file)
    return weights


def _has_digest(path: Path, sha256: str) -> bool:
    try:
        return (read_tuned(path).sha256 if is_tuned_file(path) else file_sha256(path)) == sha256
    except (OSError, WeightsError):
        return False
