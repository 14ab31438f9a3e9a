"""`predict_to`: predictions of very many images, as files of up to 4,096 images in a folder.

A part of the images becomes a file whose name is a digest of all that its rows depend on. It is
written whole or not at all, by this process or by one of a cluster, and never again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, Unpack

from featx.backbones.weights import file_sha256
from featx.cache.layout import CacheLayout
from featx.exceptions import (
    ArtefactError,
    DatasetError,
    MissingExtraError,
    OutputError,
    UnknownNameError,
)
from featx.extraction.executors import Where
from featx.extraction.parts import (
    NO_FILE,
    Argument,
    Result,
    completed,
    require_same_featx,
    why_not_computed,
)
from featx.extraction.record import check_shard
from featx.files.outputs import written_whole
from featx.files.stores import as_address, local_copy, shown
from featx.images.dataset import ImageDataset
from featx.images.reading import ReadingOptions
from featx.models.model_file import Predictor, load_predictor
from featx.models.prediction import (
    Prediction,
    PredictionTable,
    check_options,
    image_chunks,
    predict,
)
from featx.terminal import NAME_ERRORS
from featx.threads import limited_processors

_LOG = logging.getLogger("featx")
_NAME = re.compile(r"(part-\d{6,}-[0-9a-f]{12})\.(?:csv|parquet)")
# Rows that are held at a time to become columns.
_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class PredictedParts:
    """What became of the parts of a prediction.

    Parameters
    ----------
    folder : str
        Where the files are.
    parts, images : int
        How many parts and images there are, of this share.
    written, present : int
        How many files were written now, and how many were there already.
    unreadable : int
        How many images of the files that were written now could not be read.
    failed : tuple of (name of the file, reason)
        The parts that could not be computed. The same call computes them.
    others : int
        How many files of the folder are of another model, other options or other images.
    """

    folder: str
    parts: int
    images: int
    written: int
    present: int
    unreadable: int
    failed: tuple[tuple[str, str], ...]
    others: int


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A ``.featx`` file, and how it is loaded."""

    path: str
    sha256: str
    cache: str | None
    weights: str | None
    trust: bool


@dataclass(frozen=True, kw_only=True)
class PredictionPart:
    """Some images, what predicts them, and the file that their rows become."""

    model: ModelFile
    options: dict[str, Any]  # of `predict`
    images: ImageDataset
    names: tuple[str, ...]  # as they are written
    target: Path
    mark: Path  # a file that is there while the run is under way
    processors: int | None
    first_exists: bool  # for the process that asks
    featx: str


# Where it is computed


def predict_part(part: PredictionPart) -> int:
    """Write the predictions of a part, and return how many of its images could not be read.

    Raises
    ------
    ArtefactError, CacheError, DatasetError, OutputError
        If this host has another model or another featx, or does not see the images or the folder.
        The message names the host.
    """
    host = socket.gethostname()
    with limited_processors(part.processors):
        require_same_featx(part.featx)
        if not part.mark.exists():
            raise OutputError(
                f"host {host} does not see the folder {part.target.parent}: put it on a disk that "
                "all hosts share"
            )
        model = _loaded(part.model)
        options = part.options
        table = PredictionTable(model.regression, options["unknown"], options["abstain"])
        unreadable: list[str] = []

        def named() -> Iterator[Prediction]:
            rows = predict(model, part.images, **options)
            for name, row in zip(part.names, rows, strict=True):
                if row.status == "failed":
                    unreadable.append(row.reason)
                yield replace(row, path=name)

        with written_whole(part.target) as unfinished:
            _WRITERS[part.target.suffix[1:]](unfinished, table, named())
            # One missing file is missing; all of them are on a disk that this host does not see.
            if part.first_exists and unreadable == [NO_FILE] * len(part.names):
                raise DatasetError(
                    f"host {host} sees none of the images, such as {part.names[0]}: put them where "
                    "all hosts see them"
                )
    return len(unreadable)


@lru_cache(maxsize=1)
def _loaded(model: ModelFile) -> Predictor:
    """Return a model, loaded once in a process."""
    host = socket.gethostname()
    try:
        digest = file_sha256(local_copy(model.path))
    except OSError as error:
        raise ArtefactError(
            f"host {host} cannot read {model.path}: {error.strerror}; put it where all hosts see it"
        ) from error
    if digest != model.sha256:
        raise ArtefactError(
            f"host {host} has another model in {model.path} than the run: copy the same file there"
        )
    return load_predictor(model.path, cache=model.cache, weights=model.weights, trust=model.trust)


def _write_csv(path: Path, table: PredictionTable, rows: Iterable[Prediction]) -> None:
    with path.open("w", encoding="utf-8", errors=NAME_ERRORS, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.columns)
        for row in rows:
            writer.writerows(table.texts(row))


def _write_parquet(path: Path, table: PredictionTable, rows: Iterable[Prediction]) -> None:
    pa = _pyarrow()
    from pyarrow import parquet

    kinds = {
        **dict.fromkeys(("probability", "distance", "value", "low", "high"), pa.float64()),
        **dict.fromkeys(("unknown", "unsure"), pa.bool_()),
        "rank": pa.int32(),
    }
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in table.columns])
    cells = chain.from_iterable(map(table.rows, rows))
    with parquet.ParquetWriter(path, schema) as writer:
        while batch := list(islice(cells, _ROWS)):
            columns = [
                pa.array(map(_valid_text, column) if name not in kinds else column, kinds.get(name))
                for name, column in zip(table.columns, zip(*batch, strict=True), strict=True)
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _valid_text(cell: object) -> str | None:
    """Return a label or a name as text, with escapes for bytes that are none."""
    if cell is None:
        return None
    return str(cell).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise MissingExtraError("pyarrow", extra="parquet", purpose="writing Parquet") from error
    return pyarrow


_WRITERS: dict[str, Callable[[Path, PredictionTable, Iterable[Prediction]], None]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
}


# Where it is asked for


def predict_to(
    model_path: str | os.PathLike[str],
    images: Any,
    folder: str | os.PathLike[str],
    *,
    on: str | Executor | None = None,
    task_cpus: int = 1,
    task_gpus: float = 0,
    shard: tuple[int, int] | None = None,
    format: str = "csv",
    cache: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    trust: bool = False,
    top_k: int | None = None,
    unknown: bool = False,
    abstain: bool = False,
    coverage: float | None = None,
    **reading: Unpack[ReadingOptions],
) -> PredictedParts:
    """Predict any number of images into files of a folder, here or on a cluster.

    Images are cut into parts of up to 4,096, as they come. A part becomes one file, such as
    ``part-000017-0f3a5c7d9e1b.csv``. Its digest is that of the model file, the options and the
    names of its images. Files that are there are skipped, so that the same call resumes a run that
    was stopped. Images that change under the same name are not noticed: name another folder.

    Parameters
    ----------
    model_path : str or path
        A ``.featx`` file.
    images : str, path, iterable of these, table, ImageDataset
        What `featx.predict` takes, but for pixels in memory. Names are taken as they are needed.
    folder : str or path
        Where the files go. It is made if it is not there.
    on : {"ray", "dask"}, "dask=ADDRESS", Executor or None, default None
        Where parts are computed, as for `featx.extract`. All hosts have to see the model, the
        images and the folder. Only names travel.
    task_cpus : int, default 1
        Processors that a part may use, with `on`.
    task_gpus : float, default 0
        GPUs that a part may use, with `on`.
    shard : tuple of two int, optional
        ``(2, 5)`` computes the second of five shares of the parts.
    format : {"csv", "parquet"}, default "csv"
        What the files are. Parquet needs the extra ``parquet``.
    cache : str or path, optional
        Features that a cache already has are read from it.
    weights, trust
        How the model is loaded, as for `featx.load`.
    top_k, unknown, abstain, coverage
        As for `featx.predict`.
    **reading
        How a table is read, as for `featx.extract`.

    Returns
    -------
    PredictedParts
        How many parts were written, were there, or failed.

    Raises
    ------
    ArtefactError
        If the file is no model.
    FeaturesError
        If the model cannot say what is asked, as for `featx.predict`.
    DatasetError
        If images are in memory, or there is no such share.
    OutputError
        If the folder cannot be written.
    EngineError
        If there is no such cluster.
    MissingExtraError
        If a library that `on` or `format` needs is not installed.

    Examples
    --------
    >>> done = predict_to("m.featx", "new/", "predictions", on="ray")  # doctest: +SKIP
    >>> print(done.written, done.present, done.failed)  # doctest: +SKIP
    12 0 ()
    """
    if format not in _WRITERS:
        raise UnknownNameError("format", format, _WRITERS)
    if format == "parquet":
        _pyarrow()
    if shard is not None:
        check_shard(*shard)
    where = None if on is None else Where(on=on, cpus=task_cpus, gpus=task_gpus)
    run = _PartedPrediction(
        model=_model_file(model_path, cache=cache, weights=weights, trust=trust),
        options={"top_k": top_k, "unknown": unknown, "abstain": abstain, "coverage": coverage},
        folder=_folder(folder),
        format=format,
        shard=shard or (1, 1),
        processors=None if where is None else task_cpus,
    )
    run.work(image_chunks(images, cache, **reading), where)
    return run.report(os.fspath(folder))


@dataclass(kw_only=True)
class _PartedPrediction:
    """A prediction in parts, and what has become of it so far."""

    model: ModelFile
    options: dict[str, Any]
    folder: Path
    format: str
    shard: tuple[int, int]
    processors: int | None
    others: set[str] = field(default_factory=set)  # files that no part has had yet
    parts: int = 0
    images: int = 0
    written: int = 0
    present: int = 0
    unreadable: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        self.others = {name for name in names if _NAME.fullmatch(name)}
        self._mark = self.folder / f".run-{os.urandom(8).hex()}"

    def work(self, chunks: Iterator[ImageDataset], where: Where | None) -> None:
        """Write the parts whose files are not there."""
        parts = self._missing(chunks)
        first = next(parts, None)
        if first is None:
            return  # nothing is loaded, nor started
        check_options(_loaded(self.model), **self.options)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._mark.touch()
        except OSError as error:
            raise OutputError(
                f"cannot write into {str(self.folder)!r}: {error.strerror}. Name another folder "
                "with -o"
            ) from error
        try:
            with ExitStack() as stack:
                submit = stack.enter_context(nullcontext(_here) if where is None else where.open())
                finished = completed(
                    submit,
                    predict_part,
                    chain([first], parts),
                    window=1 if where is None else None,
                )
                for name, future in stack.enter_context(closing(finished)):
                    self._enter(name, future)
        finally:
            with suppress(OSError):
                self._mark.unlink()

    def _missing(self, chunks: Iterator[ImageDataset]) -> Iterator[tuple[str, PredictionPart]]:
        """Yield the parts of this share whose files are not there, with the names of these."""
        number, count = self.shard
        known = {name.partition(".")[0] for name in self.others}
        for position, chunk in enumerate(chunks):
            _require_elsewhere(chunk)
            names = tuple(chunk.address(row) for row in range(len(chunk)))
            stem = f"part-{position:06d}-{self._digest(names)}"
            if stem in known:
                self.others -= {f"{stem}.{end}" for end in _WRITERS}
            if position % count != number - 1:
                continue
            self.parts += 1
            self.images += len(names)
            target = self.folder / f"{stem}.{self.format}"
            if target.exists():
                self.present += 1
                continue
            yield target.name, self._part(target, names, chunk)

    def _digest(self, names: tuple[str, ...]) -> str:
        identity = json.dumps([self.model.sha256, self.options, names], sort_keys=True)
        return hashlib.sha256(identity.encode("ascii")).hexdigest()[:12]

    def _part(self, target: Path, names: tuple[str, ...], chunk: ImageDataset) -> PredictionPart:
        images = chunk.detached(range(len(chunk)))
        if isinstance(images.root, Path):
            images = replace(images, root=images.root.absolute())
        return PredictionPart(
            model=self.model,
            options=self.options,
            images=images,
            names=names,
            target=target,
            mark=self._mark,
            processors=self.processors,
            first_exists=os.path.exists(names[0]),
            featx=version("featx"),
        )

    def _enter(self, name: str, future: Future[int]) -> None:
        try:
            self.unreadable += future.result()
        # Whatever an engine raises for a part, the others are written.
        except Exception as error:
            self.failed.append((name, why_not_computed(error)))
        else:
            self.written += 1

    def report(self, folder: str) -> PredictedParts:
        """Return what became of the parts, and warn of files that are not of this prediction."""
        if self.others:
            _LOG.warning(
                "%s files in %s are of another model, other options or other images, such as %s: "
                "leave them out when you read the folder, or remove them",
                f"{len(self.others):,}",
                os.path.join(folder, ""),
                min(self.others),
            )
        return PredictedParts(
            folder=folder,
            parts=self.parts,
            images=self.images,
            written=self.written,
            present=self.present,
            unreadable=self.unreadable,
            failed=tuple(sorted(self.failed)),
            others=len(self.others),
        )


def _here(function: Callable[[Argument], Result], argument: Argument, /) -> Future[Result]:
    """Compute at once, and return the future of that."""
    future: Future[Result] = Future()
    try:
        future.set_result(function(argument))
    except Exception as error:
        future.set_exception(error)
    return future


def _model_file(
    path: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | None,
    trust: bool,
) -> ModelFile:
    """Return a model file by names that mean the same in another folder."""
    file = local_copy(path)
    if not file.is_file():
        raise ArtefactError(
            f"expected a model saved by featx, received {os.fspath(path)!r}, which is no file"
        )
    if weights is not None:
        weights = os.path.abspath(weights) if os.path.exists(weights) else os.fspath(weights)
    return ModelFile(
        path=as_address(path) or os.path.abspath(path),
        sha256=file_sha256(file),
        cache=None if cache is None else str(CacheLayout.at(cache).root.absolute()),
        weights=weights,
        trust=trust,
    )


def _folder(folder: str | os.PathLike[str]) -> Path:
    if address := as_address(folder):
        raise OutputError(
            f"expected a folder for the predictions, received {shown(address)!r}: name one on a "
            "disk, and copy its files to the store"
        )
    path = Path(folder).absolute()
    if path.exists() and not path.is_dir():
        raise OutputError(
            f"expected a folder for the predictions, received {os.fspath(folder)!r}, which is a "
            "file: name a folder"
        )
    return path


def _require_elsewhere(images: ImageDataset) -> None:
    """Refuse images that only this process has."""
    if images.in_memory:
        raise DatasetError(
            "images in memory have no names by which a part is known: give files, archives or "
            "tables, or use featx.predict"
        )
