"""The engine for CPUs: OpenVINO runs what Keras built: converted once, compared, kept on disk."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.backbones.build import build_tap_model, draw_images
from featx.backbones.catalog import BUNDLED
from featx.backbones.preprocessing import find_preprocessing
from featx.backbones.source import BackboneSource
from featx.backbones.taps import parse_tap, pool
from featx.backbones.weights import bundled_folder, file_sha256
from featx.engines.engine import Engine, Pixels, Provenance, Vectors
from featx.engines.onnx_network import OpenVinoArithmetic, model_of, read_network, with_taps
from featx.exceptions import BackboneError, EngineError, FeatxError, reason
from featx.files.outputs import flush, flush_names
from featx.forks import require_threads
from featx.quiet import quiet_import
from featx.spec import HALVES, INT8, Precision
from featx.terminal import stage
from featx.threads import usable_processors

Native: TypeAlias = Any
"""The module of OpenVINO or an object of its, which has no types."""
TapVectors = Mapping[str, NDArray[np.float32]]

FALL_BACK = "use the Keras engine instead: --engine keras (engine='keras')"
"""What to do where OpenVINO does not work."""
TOLERANCE = 1e-4
"""Largest `disagreement` with Keras."""

_FULL: Precision = "f32"
# Of the types that OpenVINO can compute in, by its own names; the first that a processor has.
_HALVES: dict[str, Precision] = {"BF16": "bf16", "FP16": "f16"}
# Pixels of a batch: 4 images of 224 x 224, since the maps of more leave the processor's caches. A
# batch of more than eight times as many is run in parts: it would only take memory, and where that
# runs out, Linux may end the process without an error.
_BATCH_PX = 4 * 224 * 224
_MOST_PX = 8 * _BATCH_PX
_MOST_IMAGES = 64
# Batches computed at the same time, each by threads of its own: threads that share one wait for
# each other after every layer, and longer where one of them gives way to a decoding thread.
_MOST_STREAMS = 16
_MEMORY_WORDS = ("memory", "alloc")
_TELEMETRY = "openvino_telemetry"
_CHECKED = 4
# Above what half precision rounds away.
_LARGEST_CHANGE = 0.02
_SEED = 20
_TYPE, _INT8_TYPE = "featx-openvino-conversion", "featx-openvino-int8"
# To be raised whenever the same identity makes another graph: other poolings, other blocks.
_VERSION = 1
_MODEL, _WEIGHTS, _DESCRIPTION = "model.xml", "model.bin", "conversion.json"
_TEMPORARY = ".tmp-"
_ABANDONED_S = 24 * 3600
_LOGGER = logging.getLogger("featx")
_unwritable: set[Path] = set()
_converting = threading.Lock()
_in_use: weakref.WeakSet[OpenVinoEngine | _Batch] = weakref.WeakSet()


class OpenVinoEngine(Engine):
    """Runs a network with OpenVINO on the CPU.

    A full batch has 4 images of 224 px, and more or fewer of other sizes. The conversion is
    compared with Keras before it is used for the first time. It is kept in `folder`, so that the
    next engine starts without TensorFlow; without a folder every engine converts anew. A
    quantised network is read from there, and nothing is converted.
    """

    name = "openvino"

    def __init__(
        self,
        source: BackboneSource,
        taps: tuple[str, ...],
        *,
        batch_size: int | None = None,
        precision: Precision = _FULL,
        folder: Path | None = None,
    ) -> None:
        super().__init__(source, taps)
        height, width = source.input_size_px
        self._most = max(1, _MOST_PX // (height * width))
        usual = min(max(1, _BATCH_PX // (height * width)), _MOST_IMAGES)
        self.batch_size = batch_size or usual
        processors = usable_processors()
        self._options = _options(processors)
        self.in_flight = min(processors, _MOST_STREAMS) + 1
        self._openvino = load_openvino()
        self._core = self._openvino.Core()
        # A mapped file that somebody cuts short would end the process.
        self._core.set_property({"ENABLE_MMAP": False})
        self._free: list[Native] = []
        self.network: Native = None  # as it was read or converted; to quantise it
        _in_use.add(self)
        shipped = StoredConversion.shipped(source, taps)
        if shipped and not shipped.is_whole():
            shipped = None
        self.converts = not source.is_native and shipped is None
        if precision.startswith(INT8):
            self._open_int8(source, precision, folder)
        elif shipped:
            self._load(self._with_poolings(shipped.model))
        elif source.is_native:
            self._open_native(source)
        else:
            self._open(source, StoredConversion.of(folder, source, taps) if folder else None)
        if precision in HALVES:
            # What is compared with Keras, and tried out, computes in full.
            self._compile(precision)

    def provenance(self) -> Provenance:
        """Return the versions of OpenVINO and of the Keras converted from, and the precision."""
        return {
            "engine": self.name,
            "openvino": version("openvino"),
            **({"keras": version("keras")} if self.converts else {}),
            "precision": self._precision,
        }

    def submit(self, pixels: Pixels) -> _Batch:
        """Start on a batch, and return without waiting."""
        self.require_pixels(pixels)
        require_threads("OpenVINO")
        return _Batch(self, pixels)

    def _open_int8(self, source: BackboneSource, precision: Precision, folder: Path | None) -> None:
        path = find_int8(precision, source, self.taps, folder)
        if path is None:
            raise EngineError(
                f"the int8 network of {source.name} that these features were made with is not in "
                f"{folder}: extract with --precision int8 again, which calibrates another, or with "
                "f32"
            )
        self._load(path)
        self._precision = INT8

    def _open_native(self, source: BackboneSource) -> None:
        """Open a network that OpenVINO reads itself, and see that it treats images one by one."""
        model = read_network(self._openvino, self._core, source)
        names = tuple(map(output_name, range(len(self.taps))))
        self._load(with_taps(self._openvino, model, source, self.taps, names))
        images = draw_images((_CHECKED, *source.input_size_px), _SEED)
        require_features(source, self.run(images), self.run(images[:1]))

    def _with_poolings(self, path: Path) -> Native:
        """Return a network that comes with featx, up to its last map, with the taps behind it."""
        model, on = self._core.read_model(path), OpenVinoArithmetic(self._openvino)
        features = on.transposed(model.get_results()[0].input_value(0), [0, 2, 3, 1])
        vectors = {
            output_name(index): pool(features, parse_tap(tap), on)
            for index, tap in enumerate(self.taps)
        }
        return model_of(self._openvino, model.get_parameters(), vectors)

    def _open(self, source: BackboneSource, stored: StoredConversion | None) -> None:
        if stored and stored.is_whole():
            try:
                self._load(stored.model)
            except EngineError as error:
                stored.report(str(error))
            else:
                return
        conversion = convert(source, self.taps)
        self._load(conversion.model)
        conversion.check(self.run)
        if stored:
            self._store(conversion, stored)

    def _store(self, conversion: Conversion, stored: StoredConversion) -> None:
        """Write a conversion and go on with what was written, if it can be written."""
        try:
            with stored.writing() as path:
                self._openvino.save_model(conversion.model, path, compress_to_fp16=False)
                # A full disk may cut a file short without an error.
                self._load(path)
                conversion.check(self.run)
        except (OSError, RuntimeError, EngineError) as error:
            parent = stored.folder.parent
            if parent not in _unwritable:
                _unwritable.add(parent)
                _LOGGER.warning(
                    "conversions to OpenVINO cannot be kept in %s (%s): every start converts anew",
                    parent,
                    error,
                )
            self._load(conversion.model)

    def _load(self, model: Native) -> None:
        with translated("reading the network with OpenVINO"):
            self.network = self._core.read_model(model) if isinstance(model, Path) else model
        self._compile(_FULL)

    def _compile(self, precision: Precision) -> None:
        self._free = []
        # OpenVINO takes bfloat16 by itself where the processor has it.
        options = {**self._options, "INFERENCE_PRECISION_HINT": precision}
        with translated("compiling the network with OpenVINO"):
            self._compiled = self._core.compile_model(self.network, "CPU", options)
            self._outputs = {
                tap: self._compiled.output(output_name(index))
                for index, tap in enumerate(self.taps)
            }
            received = self._compiled.get_property("INFERENCE_PRECISION_HINT")
            self._precision = received.get_type_name()
        if self._precision != precision:
            step = f"take --precision f32 (precision='f32'): this processor has no {precision}"
            raise EngineError(
                f"expected OpenVINO to compute in {precision}, received {self._precision}: "
                f"{FALL_BACK if precision == _FULL else step}"
            )

    def _shrink(self, failed: int) -> None:
        self._most = max(1, failed // 2)
        self.batch_size = min(self.batch_size, self._most)
        _LOGGER.warning(
            "a batch of %d images does not fit into memory: going on with %d", failed, self._most
        )


class _Batch:
    """A batch under way, in parts that fit into memory."""

    def __init__(self, engine: OpenVinoEngine, pixels: Pixels) -> None:
        self._engine, most = engine, engine._most
        # Held until the result is there, since OpenVINO reads from this very memory.
        self._pixels = np.require(pixels, requirements=["C", "W"])
        self._requests: list[tuple[Pixels, Native, Native]] = []
        _in_use.add(self)
        for start in range(0, max(len(pixels), 1), most):
            part = self._pixels[start : start + most]
            with _translated_batch(part):
                free = engine._free
                request = free.pop() if free else engine._compiled.create_infer_request()
                tensor = engine._openvino.Tensor(part, shared_memory=True)
                request.set_input_tensor(tensor)
                request.start_async()
            self._requests.append((part, request, tensor))

    def result(self) -> Vectors:
        """Wait for the batch, and return vectors of shape (n, d) by tap."""
        require_threads("OpenVINO")
        parts = [self._vectors(part, request) for part, request, _ in self._requests]
        if len(parts) == 1:
            return parts[0]
        return {tap: np.concatenate([part[tap] for part in parts]) for tap in parts[0]}

    def _vectors(self, part: Pixels, request: Native) -> Vectors:
        engine = self._engine
        try:
            with _translated_batch(part):
                request.wait()
                # The next batch of this request is written into the same memory.
                vectors = {
                    tap: np.array(request.get_tensor(output).data, np.float32)
                    for tap, output in engine._outputs.items()
                }
        except EngineError as error:
            cause = str(error.__cause__).lower()
            if len(part) < 2 or not any(word in cause for word in _MEMORY_WORDS):
                raise
            engine._shrink(len(part))
            return engine.run(part)
        engine._free.append(request)
        return vectors


def _after_fork() -> None:
    for lost in list(_in_use):
        # Ending it would wait for threads that are not here, so it stays.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(lost))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _options(processors: int) -> dict[str, object]:
    return {
        "NUM_STREAMS": min(processors, _MOST_STREAMS),
        "INFERENCE_NUM_THREADS": processors,
        # Pinned threads wait for the processor that a decoding thread is on.
        "ENABLE_CPU_PINNING": False,
    }


@cache
def half_precision() -> Precision | None:
    """Return the half precision that this processor computes in natively, None without one."""
    native = load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return next((half for name, half in _HALVES.items() if name in native), None)


def load_openvino() -> Native:
    """Return the module of OpenVINO, imported without its telemetry."""
    require_threads("OpenVINO")
    try:
        with without_telemetry(), quiet_import():
            import openvino
    except Exception as error:  # a library that does not fit the machine raises many kinds
        raise EngineError(
            f"OpenVINO cannot be imported ({reason(error)}): pip install openvino, or {FALL_BACK}"
        ) from error
    return openvino


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Import OpenVINO or NNCF as if the package of their telemetry were not installed.

    It writes into the home folder and asks the network as soon as it is imported, and no
    environment variable keeps it from that.
    """
    absent = _TELEMETRY not in sys.modules
    if absent:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            sys.modules.pop(_TELEMETRY, None)


@contextmanager
def translated(doing: str, next_step: str = FALL_BACK) -> Iterator[None]:
    """Raise whatever OpenVINO raises as an EngineError that says what was being done."""
    try:
        yield
    except FeatxError:
        raise
    except Exception as error:  # OpenVINO raises RuntimeError, and what its parsers raise
        step = next_step[:1].upper() + next_step[1:]
        raise EngineError(f"{doing} failed: {reason(error)}. {step}") from error


@contextmanager
def _translated_batch(pixels: Pixels) -> Iterator[None]:
    with translated(
        f"the forward pass of a batch of shape {pixels.shape}",
        "a smaller --batch-size needs less memory",
    ):
        yield


# Conversions


@dataclass(frozen=True, slots=True, eq=False)
class Conversion:
    """An OpenVINO model, and what Keras makes of a few images."""

    name: str  # of the backbone
    model: Native  # from uint8 pixels (n, h, w, 3), n dynamic, to a float32 output a tap
    images: Pixels  # from noise to smooth
    expected: TapVectors  # Keras's vectors of them

    def check(self, run: Callable[[Pixels], TapVectors]) -> None:
        """Raise `EngineError` if an engine's vectors, at two batch sizes, are not Keras's."""
        together, alone = run(self.images), run(self.images[:1])
        for tap, expected in self.expected.items():
            worst = max(
                disagreement(together[tap], expected), disagreement(alone[tap], expected[:1])
            )
            if not worst <= TOLERANCE:
                raise EngineError(
                    f"{self.name} under OpenVINO differs from Keras by {worst:.1e} relative at the "
                    f"tap {tap}; expected {TOLERANCE:.0e} at most: {FALL_BACK}"
                )


def output_name(index: int) -> str:
    """Return the name of a tap's output; TensorFlow sorts names, and zeros keep their order."""
    return f"tap_{index:04d}"


def disagreement(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Return max |ours - theirs| / max |theirs|, infinite where no such comparison can be made."""
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    if not theirs.size:
        return 0.0
    difference = float(np.abs(ours.astype(np.float64) - theirs).max())
    return difference / max(float(np.abs(theirs).max()), float(np.finfo(np.float32).tiny))


def convert(source: BackboneSource, taps: tuple[str, ...]) -> Conversion:
    """Build a network in Keras and convert it."""
    load_openvino()
    require_threads("Keras")
    with quiet_import():
        import keras
    if (backend := keras.backend.backend()) != "tensorflow":
        raise EngineError(
            "OpenVINO converts networks of Keras on TensorFlow; expected the Keras backend "
            f"'tensorflow', received {backend!r}: set KERAS_BACKEND=tensorflow, or {FALL_BACK}"
        )
    with stage(f"converting {source.name} to OpenVINO, once"):
        return _converted(source, taps)


def _converted(source: BackboneSource, taps: tuple[str, ...]) -> Conversion:
    import keras

    network = build_tap_model(source, taps)
    images = draw_images((_CHECKED, *source.input_size_px), _SEED)
    with translated(f"the conversion of {source.name} to OpenVINO"), quiet_import():
        from openvino.tools.ovc import convert_model

        outputs = {output_name(index): tensor for index, tensor in enumerate(network.outputs)}
        named = keras.Model(network.inputs, outputs)
        # Shared weights would lie in Keras's memory, which is given back before the model is.
        with _variables_found_once():
            model = convert_model(named, share_weights=False)
        with keras.device("cpu:0"):  # a GPU may round to fewer bits than are compared
            batches = [named([part], training=False) for part in (images, images[:1])]
        together, alone = (
            {
                tap: keras.ops.convert_to_numpy(batch[name])
                for tap, name in zip(taps, outputs, strict=True)
            }
            for batch in batches
        )
    for tap, vectors in together.items():
        if not np.isfinite(vectors).all():
            raise EngineError(
                f"{source.name} gives features that are no finite numbers at the tap {tap} for "
                f"drawn images, so that OpenVINO cannot be compared with Keras: {FALL_BACK}"
            )
    require_features(source, together, alone)
    return Conversion(source.name, model, images, together)


def require_features(source: BackboneSource, together: TapVectors, alone: TapVectors) -> None:
    """Raise `BackboneError` unless images have vectors, and the first the same one alone."""
    for tap, vectors in together.items():
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise BackboneError(
                f"{source.name} gives no finite numbers, or no vector an image, at the tap {tap} "
                f"for drawn images: received shape {vectors.shape}. Take another tap, or another "
                "preprocessing"
            )
        if disagreement(alone[tap], vectors[:1]) > _LARGEST_CHANGE:
            raise BackboneError(
                f"{source.name} gives an image other features at the tap {tap} when it is alone "
                "than beside other images, so that they cannot be cached: expected a network in "
                "inference mode, without statistics of the batch and without random numbers"
            )


@contextmanager
def _variables_found_once() -> Iterator[None]:
    """Keep OpenVINO from looking through all variables for each of them: half of a conversion."""
    with _converting:
        try:
            from openvino.frontend.tensorflow.node_decoder import TFGraphNodeDecoder as Decoder

            usual = Decoder.get_variable
        except (ImportError, AttributeError):  # another version of OpenVINO
            yield
            return
        variables: dict[tuple[Native, str], Native] = {}

        def find(operation: Native) -> Native:
            key = operation.graph, operation.name
            if key not in variables:
                variables[key] = usual(operation)
            return variables[key]

        Decoder.get_variable = staticmethod(find)
        try:
            yield
        finally:
            Decoder.get_variable = staticmethod(usual)


@dataclass(frozen=True, slots=True)
class StoredConversion:
    """The folder of a conversion, used only where its description and files are what is asked for.

    Reading every byte costs what hashing the backbone's weights costs on every start anyway (9 MB:
    6 ms), and anything less would let a changed bit through into the features.
    """

    folder: Path
    identity: Mapping[str, object]  # everything that decides its graph, as JSON types

    @classmethod
    def of(cls, folder: Path, source: BackboneSource, taps: tuple[str, ...]) -> StoredConversion:
        """Return where a backbone with its taps is kept below the folder of conversions."""
        return cls.named(folder, source.name, _identity(source, taps))

    @classmethod
    def named(cls, folder: Path, name: str, identity: Mapping[str, object]) -> StoredConversion:
        """Return where what has an identity is kept, under a name that a person knows."""
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:80]
        return cls(folder / f"{name}-{digest}", identity)

    @classmethod
    def int8(
        cls, folder: Path, digest: str, source: BackboneSource, taps: tuple[str, ...]
    ) -> StoredConversion:
        """Return where a quantised network is kept whose files have a digest, see `digest_of`."""
        identity = {
            "type": _INT8_TYPE,
            "version": 1,
            "backbone": source.name,
            "weights_sha256": source.weights.sha256,
            "input_size_px": list(source.input_size_px),
            "preprocessing": source.preprocessing,
            "taps": list(taps),
            "digest": digest,
        }
        return cls.named(folder, f"{source.name}-{INT8}", identity)

    @classmethod
    def shipped(cls, source: BackboneSource, taps: tuple[str, ...]) -> StoredConversion | None:
        """Return the conversion that comes with featx, where it is what is asked for.

        It has the last feature map, behind which every pooling of it is put.
        """
        row = source.row
        if (
            row is None
            or row.name != BUNDLED
            or source.weights.sha256 != row.weights_hash
            or source.input_size_px != (row.input_size_px,) * 2
            or any(parse_tap(tap).layer for tap in taps)
        ):
            return None
        identity = {
            "type": _TYPE,
            "version": _VERSION,
            "backbone": source.name,
            "weights_sha256": source.weights.sha256,
            "input_size_px": list(source.input_size_px),
        }
        return cls(bundled_folder() / f"{BUNDLED}.openvino", identity)

    @property
    def model(self) -> Path:
        """The file that OpenVINO reads; the weights lie beside it."""
        return self.folder / _MODEL

    def is_whole(self) -> bool:
        """Return whether there is such a conversion, whole and unchanged; log one that is not."""
        damage = self._damage() if self.folder.exists() else ""
        if damage:
            self.report(damage)
        return self.folder.exists() and not damage

    def report(self, damage: str) -> None:
        """Log that the conversion cannot be used."""
        _LOGGER.warning(
            "the conversion kept in %s is damaged (%s): converting again", self.folder, damage
        )

    def _damage(self) -> str:
        try:
            stated = json.loads((self.folder / _DESCRIPTION).read_text("utf-8"))
            actual = self._description(self.folder)
        except (OSError, ValueError, RecursionError) as error:
            return str(error)
        return "" if stated == actual else "its files are not those that it states"

    def _description(self, folder: Path) -> dict[str, object]:
        return {**self.identity, "sha256": _file_digests(folder / _MODEL)}

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Give the path of a model to write; then put it into the folder, durably and at once.

        Another process may do the same meanwhile: a whole conversion stays. What fails is removed.
        """
        parent = self.folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{_TEMPORARY}*"):  # by processes that were killed
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(left, ignore_errors=True)
        written, aside = (parent / f"{_TEMPORARY}{uuid.uuid4().hex}" for _ in range(2))
        written.mkdir()
        try:
            yield written / _MODEL
            description = json.dumps(self._description(written), indent=1)
            (written / _DESCRIPTION).write_text(description, "utf-8")
            flush(written)
            if self.folder.exists() and self._damage():
                with suppress(FileNotFoundError):  # another process moved it first
                    self.folder.rename(aside)
            try:
                written.rename(self.folder)
            except OSError:
                if self._damage():
                    raise
            flush_names(parent)
        finally:
            for folder in (written, aside):
                shutil.rmtree(folder, ignore_errors=True)


def _file_digests(model: Path) -> dict[str, str]:
    return {name: file_sha256(model.with_name(name)) for name in (_MODEL, _WEIGHTS)}


def digest_of(model: Path) -> str:
    """Return the digest of a model's two files, which names a quantised network."""
    return hashlib.sha256("".join(_file_digests(model).values()).encode("ascii")).hexdigest()


def find_int8(
    precision: Precision, source: BackboneSource, taps: tuple[str, ...], folder: Path | None
) -> Path | None:
    """Return the file of the network that a precision names, None where it is not kept."""
    digest = precision.removeprefix(f"{INT8}:")
    stored = folder and StoredConversion.int8(folder, digest, source, taps)
    if not stored or not stored.is_whole() or digest_of(stored.model) != digest:
        return None
    return stored.model


def _identity(source: BackboneSource, taps: tuple[str, ...]) -> dict[str, object]:
    row, (_, rule) = source.row, find_preprocessing(source.preprocessing)
    # What makes the layers beside Keras itself.
    builder: tuple[object, ...] = () if row is None else (row.keras_name, row.arguments)
    if source.kind == "hub":
        with suppress(PackageNotFoundError):
            builder = ("keras-hub", version("keras-hub"))
    identity: dict[str, object] = {
        "type": _TYPE,
        "version": _VERSION,
        "backbone": source.name,
        "builder": builder,
        "weights_sha256": source.weights.sha256,
        "input_size_px": source.input_size_px,
        "preprocessing": (rule.scale, rule.offset, rule.bgr),
        "taps": taps,
        # Another Keras may build another graph of the same weights, another OpenVINO convert or
        # read it differently; converting again takes seconds, once an upgrade.
        "keras": version("keras"),
        "openvino": version("openvino"),
    }
    identity = json.loads(json.dumps(identity))  # lists in the place of tuples
    return identity
