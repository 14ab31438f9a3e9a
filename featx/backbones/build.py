"""Build a network with its taps: uint8 RGB pixels in, one vector a tap out."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from featx.backbones.catalog import PREPROCESSINGS
from featx.backbones.drawing import draw_weights
from featx.backbones.folders import FOLDER_KINDS, FolderKind
from featx.backbones.hub_preset import require_keras_hub_for
from featx.backbones.poolings import pool
from featx.backbones.saved_model import DEFAULT_OUTPUT
from featx.backbones.source import BackboneSource
from featx.backbones.taps import Tap, parse_tap
from featx.backbones.tuned import is_tuned_file, unpacked
from featx.backbones.wrong_files import misfit, unknown_layers
from featx.exceptions import BackboneError, FeatxError, UnknownNameError, WeightsError, reason
from featx.files.plain_network import require_plain_network
from featx.forks import require_threads
from featx.quiet import quiet_import, quiet_loading

HalfType = Literal["float16", "bfloat16"]


def build_network(source: BackboneSource, *, mixed: HalfType | None = None) -> Any:
    """Build a backbone and load its weights.

    Parameters
    ----------
    source : BackboneSource
        From `featx.backbones.source.resolve_backbone`.
    mixed : {"float16", "bfloat16"}, optional
        The number type to compute in; weights stay float32. By default that is float32 as well.

    Returns
    -------
    network : keras.Model
        Without its top, not trainable, from preprocessed float input of shape (n, h, w, 3).

    Raises
    ------
    WeightsError
        If the weights are damaged or belong to another network.
    BackboneError
        If the network cannot be built.
    """
    require_threads("Keras")
    with quiet_import():
        import keras
    network = _load_own(source, keras) if source.row is None else _build_named(source, keras)
    network.trainable = False
    if mixed is not None:
        folder = _folder_kind(source)
        if folder is not None and folder.opaque:
            raise BackboneError(
                f"{source.name} computes in the number types that it was saved with: expected the "
                "precision 'f32', received 'mixed'; leave --precision out"
            )
        _compute_in(network, mixed)
    return network


def _compute_in(network: Any, half: HalfType) -> None:
    # Afterwards, layer by layer: the policy for new layers is of the process, which is not ours,
    # does not reach the layers of a saved network, and random weights would be calibrated with it.
    for layer in network._flatten_layers():
        if layer.dtype_policy.name == "float32":  # others were chosen by whoever made the network
            layer.dtype_policy = f"mixed_{half}"


def _load_own(source: BackboneSource, keras: Any) -> Any:
    path = source.weights.path
    assert path is not None
    folder = _folder_kind(source)
    try:
        if folder is not None:
            model = folder.load(path, source.input_size_px, source.preprocessing)
        else:
            with _readable(path) as file, quiet_loading():
                model = keras.models.load_model(file, compile=False, safe_mode=True)
    except FeatxError:
        raise
    except Exception as error:  # Keras raises what the file's layers raise
        require_keras_hub_for(str(error), f"the network in {path}")
        if folder is None and path.suffix == ".keras" and (unknown := unknown_layers(path)):
            raise unknown from error
        raise BackboneError(
            f"{path} cannot be loaded as a Keras model: {reason(error)}. Is it whole, and of this "
            "version of Keras?"
        ) from error
    inputs, outputs = model.inputs or [], model.outputs or []
    several = folder is not None and folder.opaque
    if len(inputs) != 1 or (len(outputs) != 1 and not several):
        raise BackboneError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; expected one of each"
        )
    own, (height, width) = tuple(inputs[0].shape[1:]), source.input_size_px
    if len(own) != 3 or any(
        has not in (None, wanted) for has, wanted in zip(own, (height, width, 3), strict=True)
    ):
        raise BackboneError(
            f"{path} takes inputs of shape {own}; expected RGB pixels, here ({height}, {width}, 3):"
            " leave --input-size out, or save a model that takes this size"
        )
    return model


def _folder_kind(source: BackboneSource) -> FolderKind | None:
    return FOLDER_KINDS.get(source.name.partition(":")[0]) if source.row is None else None


def _build_named(source: BackboneSource, keras: Any) -> Any:
    row = source.row
    assert row is not None
    builder = getattr(keras.applications, row.keras_name)
    height, width = source.input_size_px
    network = builder(
        include_top=False, weights=None, input_shape=(height, width, 3), **dict(row.arguments)
    )
    if source.weights.seed is not None:
        draw_weights(network, source.weights.seed, PREPROCESSINGS[source.preprocessing])
        return network
    assert source.weights.path is not None
    try:
        with _readable(source.weights.path) as file, quiet_loading():
            network.load_weights(file)
    except WeightsError:
        raise
    except Exception as error:  # h5py and Keras raise many kinds
        with _readable(source.weights.path) as file:
            raise misfit(row, source.weights.path, file, error) from error
    return network


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
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


def preprocess(pixels: Any, name: str) -> Any:
    """Map pixels (0 to 255, RGB, channels last) to a network's input.

    Parameters
    ----------
    pixels : keras tensor of shape (n, h, w, 3)
        Any number type.
    name : str
        Key of `featx.backbones.catalog.PREPROCESSINGS`.

    Returns
    -------
    keras tensor of shape (n, h, w, 3), float32
    """
    from keras import layers, ops

    rule = PREPROCESSINGS[name]
    x = ops.cast(pixels, "float32")
    if rule.bgr:
        x = ops.flip(x, axis=-1)
    if set(rule.scale) == {1.0} and set(rule.offset) == {0.0}:
        return x
    scale, offset = list(rule.scale), list(rule.offset)
    return layers.Rescaling(scale, offset, dtype="float32", name="featx_preprocessing")(x)


def build_tap_model(
    source: BackboneSource,
    taps: tuple[str, ...],
    *,
    network: Any = None,
    mixed: HalfType | None = None,
) -> Any:
    """Build the model that an engine runs.

    Parameters
    ----------
    source : BackboneSource
        The backbone.
    taps : tuple of str
        Canonical names of taps, see `featx.backbones.taps`.
    network : keras.Model, optional
        The network when it has been built already, `mixed` or not.
    mixed : {"float16", "bfloat16"}, optional
        The number type that the network is to compute in. Preprocessing, pooling and the vectors
        are float32 all the same.

    Returns
    -------
    model : keras.Model
        From uint8 RGB pixels of shape (n, h, w, 3) to float32 vectors of shape (n, d), a list in
        the order of `taps` where there are several.

    Raises
    ------
    UnknownNameError
        If a tap names a layer or block that the network does not have.
    """
    with quiet_import():
        import keras
    if network is None:
        network = build_network(source, mixed=mixed)
    named = [parse_tap(name) for name in taps]
    tensors = [tap_tensor(network, source, tap) for tap in named]
    for tap, tensor in zip(named, tensors, strict=True):
        if tap.pooling != "flatten" and len(tensor.shape) == 4 and _channels_first(tensor):
            flat = f"{tap.layer}:flatten" if tap.layer else "flatten"
            raise BackboneError(
                f"tap {tap} of {source.name} has its channels first, in shape {tensor.shape[1:]}: "
                f"expected them last. Take --tap {flat}, or a layer behind a transposition"
            )
    height, width = source.input_size_px
    pixels = keras.Input((height, width, 3), dtype="uint8", name="pixels")
    trunk = keras.Model(network.inputs, tensors, name="featx_trunk")
    try:
        maps = trunk(preprocess(pixels, source.preprocessing), training=False)
    except Exception as error:  # Keras raises what the network's layers raise
        raise BackboneError(
            f"{source.name} cannot be applied to inputs of {height}x{width} px: {reason(error)}. "
            "Give the size that it takes with --input-size (input_size=...)"
        ) from error
    maps = maps if isinstance(maps, (list, tuple)) else [maps]
    # Powers and sums over a map leave the range of half precision.
    maps = [keras.ops.cast(x, "float32") for x in maps]
    vectors = [pool(x, tap) for x, tap in zip(maps, named, strict=True)]
    model = keras.Model(pixels, vectors, name="featx_taps")
    model.trainable = False
    return model


def tap_tensor(network: Any, source: BackboneSource, tap: Tap) -> Any:
    """Return what a tap pools: the output of its layer or block.

    Raises
    ------
    UnknownNameError
        If the network has no such layer or block.
    """
    if not tap.layer:
        names = network.output_names if len(network.outputs) > 1 else [DEFAULT_OUTPUT]
        if names[0] != DEFAULT_OUTPUT:
            raise BackboneError(
                f"{source.name} has the outputs {', '.join(names)}: name one of them, as in "
                f"--tap {names[0]}:{tap}"
            )
        return network.outputs[0]
    layers = layer_outputs(network)
    if tap.layer in layers:
        return layers[tap.layer]
    blocks = block_outputs(network, source)
    if tap.layer in blocks:
        return blocks[tap.layer]
    raise UnknownNameError(
        f"layer or block of {source.name}",
        tap.layer,
        [*blocks, *layers],
        hint=f"`featx backbones {source.name}` lists its blocks" if source.row else "",
    )


def _channels_first(tensor: Any) -> bool:
    """Tell whether the last layer that has an order of its axes puts channels first."""
    while True:
        layer = tensor._keras_history.operation
        if hasattr(layer, "data_format"):
            return bool(layer.data_format == "channels_first")
        inputs = layer._inbound_nodes[0].input_tensors if layer._inbound_nodes else []
        if not inputs:
            return False
        if (order := _order(layer)) is not None:
            return order == (3, 1, 2)
        tensor = inputs[0]


def _order(layer: Any) -> tuple[int, ...] | None:
    """Return which axes a transposition of maps takes, counted from 1; None for other layers."""
    if type(layer).__name__ == "Permute":
        return tuple(layer.dims)
    axes = getattr(layer, "axes", None) if type(layer).__name__ == "Transpose" else None
    return None if axes is None else tuple(axes[1:])


def layer_outputs(network: Any) -> dict[str, Any]:
    """Return the output tensor of every layer by a name that does not depend on the process.

    Keras numbers unnamed layers through the life of a process (``activation_205``); here they are
    numbered through the network, from 1. Layers that are applied more than once, or have several
    outputs, have no one output and are left out.
    """
    counts: dict[str, int] = {}
    outputs = {}
    applied = _applications(network)
    for layer in network.layers:
        name = _stable_name(layer, counts)
        tensors = applied.get(id(layer), [])
        if len(tensors) == 1:
            outputs[name] = tensors[0]
    return outputs


def _applications(network: Any) -> dict[int, list[Any]]:
    # Not `layer.output`: that of a nested model belongs to its own graph, not to the network's.
    found: dict[int, list[Any]] = {}
    graph = getattr(network, "_functional", network)
    for nodes in graph._nodes_by_depth.values():
        for node in nodes:
            found.setdefault(id(node.operation), []).extend(node.outputs)
    return found


def _stable_name(layer: Any, counts: dict[str, int]) -> str:
    kind = re.sub(r"\W+", "", type(layer).__name__)
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "_", kind).lower()
    match = re.fullmatch(r"(.+?)(?:_(\d+))?", layer.name)
    base = match.group(1) if match else layer.name
    if base.replace("_", "") != snake.replace("_", ""):
        return str(layer.name)
    counts[base] = counts.get(base, 0) + 1
    return f"{base}_{counts[base]}"


def block_outputs(network: Any, source: BackboneSource) -> dict[str, Any]:
    """Return the output tensor of every block, in the order of the network.

    The output of a block is that of its last layer, or of the sum in which that layer ends.
    """
    if source.row is None:
        return {}
    pattern = re.compile(source.row.shared.block)
    last: dict[str, Any] = {}
    for layer in network.layers:
        match = pattern.match(layer.name)
        if match:
            last[match.group(1)] = layer.output
    consumers = _consumers(network)
    return {name: _through_sum(tensor, consumers, pattern) for name, tensor in last.items()}


def _consumers(network: Any) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for operation in network.operations:
        node = operation._inbound_nodes[0]
        for tensor in node.input_tensors:
            found.setdefault(id(tensor), []).append(operation)
    return found


def _through_sum(tensor: Any, consumers: dict[int, list[Any]], pattern: re.Pattern[str]) -> Any:
    after = consumers.get(id(tensor), [])
    if len(after) != 1 or pattern.match(after[0].name):
        return tensor
    merges = len(after[0]._inbound_nodes[0].input_tensors) > 1
    return after[0].output if merges else tensor
