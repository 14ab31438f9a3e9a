"""Make an OpenVINO model of a Keras network with its taps, and compare the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.build import build_tap_model, draw_images
from featx.backbones.source import BackboneSource
from featx.engines.openvino_library import FALL_BACK, load_openvino, translated
from featx.exceptions import BackboneError, EngineError
from featx.forks import require_threads
from featx.quiet import quiet_import

TOLERANCE = 1e-4
"""Largest `disagreement` with Keras."""

_CHECKED = 4
# Above what half precision rounds away.
_LARGEST_CHANGE = 0.02
_SEED = 20


@dataclass(frozen=True, slots=True, eq=False)
class Conversion:
    """An OpenVINO model, and what Keras makes of a few images.

    Parameters
    ----------
    name : str
        Name of the backbone.
    model : openvino.Model
        From uint8 pixels of shape (n, h, w, 3), n dynamic, to an output a tap, float32.
    images : ndarray of shape (n, h, w, 3), uint8
        Images, from noise to smooth.
    expected : mapping of str to ndarray of shape (n, d), float32
        Keras's vectors of them by tap.
    """

    name: str
    model: Any
    images: NDArray[np.uint8]
    expected: Mapping[str, NDArray[np.float32]]

    def check(self, run: Callable[[NDArray[np.uint8]], Mapping[str, NDArray[np.float32]]]) -> None:
        """Compare what an engine makes of the images with what Keras does, at two batch sizes.

        Raises
        ------
        EngineError
            If they differ by more than `TOLERANCE`.
        """
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
    """Return the name of the output of the tap at an index.

    TensorFlow hands out outputs sorted by name; leading zeros keep them in order.
    """
    return f"tap_{index:04d}"


def disagreement(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Return the largest difference of the vectors of one tap, relative to the largest value.

    That is max |ours - theirs| / max |theirs| over all images and components; infinite where
    something is not finite or the shapes differ.

    Examples
    --------
    >>> disagreement(np.float32([[1, 2]]), np.float32([[1, 4]]))
    0.5
    """
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    if not theirs.size:
        return 0.0
    difference = float(np.abs(ours.astype(np.float64) - theirs).max())
    return difference / max(float(np.abs(theirs).max()), float(np.finfo(np.float32).tiny))


def convert(source: BackboneSource, taps: tuple[str, ...]) -> Conversion:
    """Build a network in Keras and convert it.

    Raises
    ------
    WeightsError, BackboneError, UnknownNameError
        If the network cannot be built, or has no such layer.
    EngineError
        If it cannot be converted.
    """
    load_openvino()
    require_threads("Keras")
    with quiet_import():
        import keras
    if (backend := keras.backend.backend()) != "tensorflow":
        raise EngineError(
            "OpenVINO converts networks of Keras on TensorFlow; expected the Keras backend "
            f"'tensorflow', received {backend!r}: set KERAS_BACKEND=tensorflow, or {FALL_BACK}"
        )
    network = build_tap_model(source, taps)
    images = draw_images((_CHECKED, *source.input_size_px), _SEED)
    with translated(f"the conversion of {source.name} to OpenVINO"), quiet_import():
        from openvino.tools.ovc import convert_model

        outputs = {output_name(index): tensor for index, tensor in enumerate(network.outputs)}
        named = keras.Model(network.inputs, outputs)
        # Shared weights would lie in Keras's memory, which is given back before the model is.
        model = convert_model(named, share_weights=False)
        with keras.device("cpu:0"):  # a GPU may round to fewer bits than are compared
            vectors = named([images], training=False)
            again = named([images[:1]], training=False)
        expected, alone = (
            {
                tap: keras.ops.convert_to_numpy(found[output_name(index)])
                for index, tap in enumerate(taps)
            }
            for found in (vectors, again)
        )
    _require_features_of_one_image(source.name, expected, alone)
    return Conversion(source.name, model, images, expected)


def _require_features_of_one_image(
    name: str,
    together: Mapping[str, NDArray[np.float32]],
    alone: Mapping[str, NDArray[np.float32]],
) -> None:
    """Refuse a network that gives an image other features in another batch."""
    for tap, vectors in together.items():
        if not np.isfinite(vectors).all():
            raise EngineError(
                f"{name} gives features that are no finite numbers at the tap {tap} for drawn "
                f"images, so that OpenVINO cannot be compared with Keras: {FALL_BACK}"
            )
        if disagreement(alone[tap], vectors[:1]) > _LARGEST_CHANGE:
            raise BackboneError(
                f"{name} gives an image other features at the tap {tap} when it is alone than "
                "beside other images, so that they cannot be cached: expected a network in "
                "inference mode, without statistics of the batch and without random numbers"
            )
