"""Files of weights: where they are found, the digest that identifies them, and what is in them.

A model of featx, ``.featx``, is such a file too where its network lies in it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard

from featx.backbones.catalog import BUNDLED, CATALOG, Backbone, find_backbone
from featx.backbones.preprocessing import IMAGENET_MEAN
from featx.exceptions import WeightsError, reason
from featx.files.identity import is_settled, stamp_of
from featx.files.safe_json import read_plain_json
from featx.files.safe_zip import MOST_MEMBERS, MOST_RATIO, open_plain_zip, require_plain_network
from featx.quiet import quiet_import
from featx.spec import FeatureSpec
from featx.terminal import unguarded

WeightsPath = str | os.PathLike[str]

RANDOM_RECIPE = "featx-random-weights-2"
DESCRIPTION = "model.json"
"""Member of a ``.featx`` file that says what the file is."""
NETWORK = "network.weights.h5"
"""Member with the weights of a network of the catalogue, as Keras writes them."""
OWN_NETWORK = "network.keras"
"""Member with a whole network, where it is of nobody's catalogue."""
ONNX_NETWORK = "network.onnx"
"""Member with an ONNX network."""
NETWORKS = (NETWORK, "network.h5", OWN_NETWORK, ONNX_NETWORK)
"""Every name that such a member may have: its end says what it is, as that of a file does."""

_MOST_MEMBERS = 16
_MOST_JSON_BYTES = 64 << 20
_IMAGENET_CLASSES = 1000
_SUFFIXES = (".weights.h5", ".h5", ".hdf5", ".keras", ".featx")
_HDF5, _KERAS = "an HDF5 file", "a .keras file"
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", _HDF5),
    (b"version https://git-lfs", "a Git LFS pointer: `git lfs pull` gets the file itself"),
    (b"<", "a web page in place of the download"),
    (b"\x80", "a pickle, which featx never reads"),
)
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, zipfile.BadZipFile)
_LOGGER = logging.getLogger("featx")
_digests: dict[tuple[str | int, ...], str] = {}


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that have been found."""

    source: str  # the choice: ``"imagenet"``, ``"bundled"``, ``"random:0"`` or a path
    sha256: str  # of the file, of all files of a folder, or of the recipe for random weights
    path: Path | None = None  # the file or folder; None for random weights
    seed: int | None = None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read again in this process only when its stamp has changed."""
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
    """Return the SHA-256 of one line a file, by path: its SHA-256, two spaces, its path and NUL."""
    digests: dict[bytes, str] = {}
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                digests[os.fsencode(path.relative_to(folder).as_posix())] = file_sha256(path)
            elif not path.is_dir() or path.is_symlink():
                raise WeightsError(
                    f"expected files and folders in {folder}, received {path}, a link to a folder "
                    "or something else: copy the folder with what its links lead to"
                )
    except OSError as error:
        raise WeightsError(f"{folder} cannot be read: {reason(error)}") from error
    lines = [f"{digests[name]}  ".encode() + name + b"\0" for name in sorted(digests)]
    return hashlib.sha256(b"".join(lines)).hexdigest()


# Where weights are found.


def bundled_folder() -> Path:
    """Return the folder of the package that holds the bundled weights."""
    return Path(__file__).parent / "data"


def weights_places(row: Backbone) -> list[Path]:
    """Return the files that are tried for ``weights="imagenet"``, in order.

    The folder of ``FEATX_WEIGHTS`` comes first, with the published name and ``NAME.weights.h5``;
    then Keras's own folder, where a download would put the file.
    """
    paths = []
    if folder := os.environ.get("FEATX_WEIGHTS"):
        named = Path(folder).expanduser()
        paths += [named / row.weights_file, named / f"{row.name}.weights.h5"]
    home = os.environ.get("KERAS_HOME")
    keras_home = Path(home).expanduser() if home else Path.home() / ".keras"
    return [*paths, keras_home / "models" / row.weights_file]


def find_weights_file(row: Backbone) -> Path | None:
    """Return the file of a backbone's default weights, None where there is none on this machine."""
    paths = [bundled_folder() / row.weights_file] if row.name == BUNDLED else weights_places(row)
    return next((path for path in paths if path.is_file()), None)


def resolve_weights(row: Backbone, weights: WeightsPath | None = None) -> Weights:
    """Find the weights of a backbone.

    ``"imagenet"``, the default but for the bundled backbone, is the published file: from the folder
    named by ``FEATX_WEIGHTS``, else from Keras's folder, else downloaded unless ``FEATX_OFFLINE``
    is set. ``"bundled"`` is the file that comes with featx. ``"random:SEED"`` is drawn, and only
    on request. Anything else is the path of a weights file, or of a model that was fine-tuned
    (``.featx``). `WeightsError` names a missing file and the places where it is looked for.
    """
    text = os.fspath(weights) if weights is not None else ""
    if not text:
        text = "imagenet" if row.weights_file and row.name != BUNDLED else "bundled"
    if text in ("bundled", "imagenet"):
        path = _bundled(row) if text == "bundled" else _imagenet(row)
        return Weights(text, file_sha256(path), path)
    if text == "random" or text.startswith("random:"):
        seed = text.removeprefix("random").removeprefix(":")
        if not (seed.isascii() and seed.isdigit()):
            raise WeightsError(f"random weights need a seed, as in 'random:0', received {text!r}")
        digest = hashlib.sha256(f"{RANDOM_RECIPE}:{int(seed)}".encode()).hexdigest()
        return Weights(f"random:{int(seed)}", digest, seed=int(seed))
    path = Path(text).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"expected a weights file for {row.name}, received {text!r}, which is no file: give a "
            "path, 'imagenet', 'bundled' or 'random:SEED'"
        )
    if is_tuned_file(path):
        tuned = read_tuned(path)
        if tuned.architecture != row.name:
            raise WeightsError(
                f"{path} has a {tuned.architecture or tuned.spec.backbone} in it, not {row.name}: "
                f"use --backbone {tuned.prefix}:{path}, or another model"
            )
        return Weights(text, tuned.sha256, path)
    _require_weights_file(
        path, "Name another file with --weights (weights=...), or leave it out for ImageNet's"
    )
    if not path.name.endswith(_SUFFIXES):
        raise WeightsError(
            f"expected a weights file that ends in one of {', '.join(_SUFFIXES)}, received {path}"
        )
    return Weights(str(path), file_sha256(path), path)


def _bundled(row: Backbone) -> Path:
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
    return path


def _imagenet(row: Backbone) -> Path:
    if row.name == BUNDLED:
        raise WeightsError(f"{row.name} has no ImageNet weights: leave --weights out for its own")
    path = find_weights_file(row)
    if path is not None:
        _require_weights_file(path, "Remove it, and featx downloads it again")
        return path
    if os.environ.get("FEATX_OFFLINE"):
        raise WeightsError(_missing(row, "FEATX_OFFLINE forbids the download"))
    with quiet_import():
        import keras
    _LOGGER.info("downloading %s", row.weights_url)
    # Keras draws its progress on standard output, which belongs to results.
    watched = sys.stderr is not None and sys.stderr.isatty()
    try:
        with redirect_stdout(unguarded(sys.stderr) if watched else io.StringIO()):
            downloaded = keras.utils.get_file(
                row.weights_file,
                row.weights_url,
                cache_subdir="models",
                file_hash=row.weights_hash or None,
            )
    except Exception as error:  # urllib, ssl, socket and Keras each have errors of their own
        raise WeightsError(_missing(row, f"the download failed ({reason(error)})")) from error
    return Path(downloaded)


def _missing(row: Backbone, cause: str) -> str:
    places = " or ".join(str(path) for path in weights_places(row))
    return (
        f"the ImageNet weights of {row.name} are not here, and {cause}. Download "
        f"{row.weights_url} to {places}; or name a file with --weights (weights=...), or a folder "
        f"with FEATX_WEIGHTS; or use the backbone that comes with featx: --backbone {BUNDLED}"
    )


def matching_weights(name: str, weights: WeightsPath | None, sha256: str) -> WeightsPath | None:
    """Return a choice of weights of a catalogued backbone that has a digest.

    That is `weights`, unless it is a file that is not there or has another digest, and a file of
    the folder that ``FEATX_WEIGHTS`` names has the digest.
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


# What is in a file.


def what_it_is(path: Path) -> str:
    """Return what a file is by its first bytes, empty where they are unknown."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError):
            return "a zip that is cut short or damaged: get it again"
        if "config.json" in names:
            return _KERAS
        pickled = any(name.endswith(".pkl") for name in names)
        return "a file of PyTorch, which is a pickle" if pickled else "a zip archive"
    return next((kind for begin, kind in _STARTS if start.lstrip().startswith(begin)), "")


def _require_weights_file(path: Path, step: str) -> None:
    """Raise `WeightsError`, with the next step, if a file is something else than its name says."""
    kind = what_it_is(path)
    expected = _KERAS if path.suffix == ".keras" else _HDF5
    if kind not in (expected, ""):
        step = "Give it a name that ends in .keras" if kind == _KERAS else step
        raise WeightsError(
            f"{path} is no weights file: expected {expected}, as Keras writes it, received {kind}. "
            f"{step}"
        )


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """Give the path that Keras is to read, after a look at what it would unpack to."""
    if is_tuned_file(path):
        with unpacked(path) as file:
            yield file
        return
    try:
        with path.open("rb") as opened:
            require_plain_network(opened, path.name, packed=True)
    except ValueError as error:
        raise WeightsError(
            f"{path} is refused: {reason(error)}; get the file again, or save it uncompressed"
        ) from error
    except (OSError, zipfile.BadZipFile):
        pass  # Keras cannot open it either, and its error is explained
    yield path


@contextmanager
def open_keras_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a network that anybody saved, perhaps compressed, within its bounds."""
    with path.open("rb") as file:
        yield open_plain_zip(file, most_members=MOST_MEMBERS, most_ratio=MOST_RATIO)


def _contents(path: Path) -> tuple[int, bool]:
    """Return how many weights a file holds, and whether a layer normalises by ImageNet's means."""
    import h5py
    import numpy as np

    sizes, normalises = [], []

    def look(name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset) or item.dtype.kind != "f":
            return
        if not name.startswith("optimizer"):
            sizes.append(int(item.size))
        layer = name.lower()
        if "normalization" in layer and "batch" not in layer and item.size == 3:
            normalises.append(np.allclose(np.ravel(item[()]), IMAGENET_MEAN, atol=1e-3))

    with ExitStack() as stack:
        stored: Path | IO[bytes] = path
        if path.suffix == ".keras":
            archive = stack.enter_context(open_keras_zip(path))
            stored = stack.enter_context(archive.open("model.weights.h5"))
        stack.enter_context(h5py.File(stored, "r", locking=False)).visititems(look)
    return sum(sizes), any(normalises)


def weights_preprocessing(row: Backbone, weights: Weights) -> str:
    """Return the preprocessing that weights of a catalogued backbone were trained with.

    Keras builds EfficientNet with one more rescaling for ImageNet weights; whether weights belong
    to that variant shows in the statistics that they carry.
    """
    if is_tuned_file(weights.path):
        return read_tuned(weights.path).spec.preprocessing
    family = row.shared
    if not family.own_preprocessing:
        return family.preprocessing
    if weights.path is None:
        return family.own_preprocessing
    try:
        _, of_imagenet = _contents(weights.path)
    except _DAMAGE:
        of_imagenet = False  # a damaged file is reported when it is loaded
    return family.preprocessing if of_imagenet else family.own_preprocessing


def misfit(row: Backbone, path: Path, stored: Path, error: BaseException) -> WeightsError:
    """Return the error for weights that a network does not take; `stored` is where Keras read."""
    try:
        received, _ = _contents(stored)
    except _DAMAGE as damage:
        return WeightsError(
            f"{path} cannot be read, so that it is damaged or cut short: expected weights of "
            f"{row.name}, received an error of HDF5 ({reason(damage)}). Get the file again"
        )
    top = (row.features + 1) * _IMAGENET_CLASSES
    alike = [other.name for other in CATALOG.values() if other.parameters == received]
    if received == row.parameters:
        cause = f" in other shapes ({reason(error)}). Is it of another network?"
    elif received == row.parameters + top:
        cause = ". It has the top as well: save the network with include_top=False"
    elif alike:
        cause = f", as many as {' or '.join(alike)}: use that backbone (-b {alike[0]})"
    else:
        cause = ". It is of another network, or another width (alpha) of this one"
    return WeightsError(
        f"{path} does not fit {row.name}: expected {row.parameters:,} parameters, without the top, "
        f"received {received:,}{cause}. Without --weights featx takes those of ImageNet"
    )


# Models with their network in them: fine-tuned, or saved so.


def network_prefix(member: str) -> str:
    """Return the kind of backbone that one of `NETWORKS` is read as."""
    return "onnx" if member == ONNX_NETWORK else "file"


@dataclass(frozen=True, slots=True)
class TunedFile:
    """What a ``.featx`` file says of the network in it."""

    path: Path
    spec: FeatureSpec  # of the features that the network makes
    architecture: str  # its name in the catalogue, empty where it has none
    member: str  # one of `NETWORKS`
    sha256: str  # of the member's bytes, as the file states it; `member_bytes` checks it

    @property
    def prefix(self) -> str:
        """The kind of backbone that it is read as."""
        return network_prefix(self.member)


def is_tuned_file(path: WeightsPath | None) -> TypeGuard[WeightsPath]:
    """Whether a path is that of a model of featx, by its name."""
    return path is not None and Path(path).suffix == ".featx"


@contextmanager
def open_model_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a ``.featx`` file; damage shows as any of the ten types of errors `zipfile` raises."""
    with path.open("rb") as file:
        yield open_plain_zip(file, most_members=_MOST_MEMBERS)


def read_description(archive: zipfile.ZipFile) -> dict[str, Any]:
    """Return `DESCRIPTION`; `KeyError` where there is none, `ValueError` where it is unusable."""
    if archive.getinfo(DESCRIPTION).file_size > _MOST_JSON_BYTES:
        raise ValueError(f"its {DESCRIPTION} is absurdly large")
    return read_plain_json(archive.read(DESCRIPTION), most_bytes=_MOST_JSON_BYTES)


def read_tuned(path: WeightsPath) -> TunedFile:
    """Return what a ``.featx`` file says of the network in it, or raise `WeightsError`."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise WeightsError(
            f"expected a model with its network, received {str(path)!r}, which is no file"
        )
    try:
        with open_model_zip(file) as archive:
            description = read_description(archive)
        digests = description["files"]
        member = next((name for name in NETWORKS if name in digests), None)
        spec, digest = FeatureSpec.from_dict(description["spec"]), digests.get(member, "")
        architecture = str(description["network"]["architecture"]) if member else ""
    # `zipfile` has no base of its errors: damage shows as any of ten types.
    except Exception as error:
        raise WeightsError(
            f"{file} is no model saved by featx, or is damaged: {reason(error)}"
        ) from error
    if member is None:
        raise WeightsError(
            f"{file} holds a head and no network, since the backbone, {spec.backbone}, was neither "
            "fine-tuned nor saved with it (--embed): name that backbone"
        )
    if digest != spec.weights_sha256:
        raise WeightsError(
            f"{file} states another digest of its network than its specification does: it was "
            "changed; make it again, or take a copy"
        )
    return TunedFile(file, spec, architecture, member, digest)


def member_bytes(tuned: TunedFile) -> bytes:
    """Return the network's bytes; `WeightsError` if they are not those that the file states.

    They may not be compressed either, and HDF5 in them may not point out of the file.
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
    """Give a path that Keras can read the network of a ``.featx`` file from."""
    tuned = read_tuned(path)
    data = member_bytes(tuned)
    with tempfile.TemporaryDirectory(prefix="featx-") as folder:
        file = Path(folder) / tuned.member
        file.write_bytes(data)
        yield file
