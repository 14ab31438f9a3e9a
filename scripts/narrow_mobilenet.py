"""Narrow a pretrained MobileNetV2 to a smaller alpha, block by block, with no training.

The residual streams of MobileNetV2 are linear, so each is projected onto its principal components.
In the expanded layers the channels are kept from which the block's output is best regressed
(backward elimination, as in Hassibi & Stork 1993). Every 1x1 convolution is then refitted by least
squares on what the narrowed layers before it deliver (He, Zhang & Sun 2017), so that later layers
correct the errors of earlier ones.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

Array = np.ndarray[Any, Any]
STAGES = ((0,), (1, 2), (3, 4, 5), (6, 7, 8, 9), (10, 11, 12), (13, 14, 15), (16,))


def keep_columns(hidden: Array, target: Array, count: int) -> Array:
    """Return the indices of the columns of hidden from which target is best regressed."""
    hidden, target = hidden - hidden.mean(0), target - target.mean(0)
    gram = hidden.T @ hidden / len(hidden)
    gram += np.eye(len(gram)) * (1e-3 * np.trace(gram) / len(gram) + 1e-8)
    inverse = np.linalg.inv(gram)
    weights = inverse @ (hidden.T @ target / len(hidden))
    removed = np.zeros(len(gram), bool)
    for _ in range(len(gram) - count):
        diagonal = np.where(removed, 1, np.diag(inverse))
        loss = np.where(removed, np.inf, (weights**2).sum(1) / diagonal)
        worst = int(np.argmin(loss))
        column = inverse[:, worst] / diagonal[worst]
        weights -= np.outer(column, weights[worst])
        inverse -= np.outer(column, inverse[worst])
        removed[worst] = True
    return np.flatnonzero(~removed)


def regress(x: Array, y: Array) -> tuple[Array, Array]:
    """Return weights and offset of the least-squares map from x to y."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    gram = (x - mean_x).T @ (x - mean_x) / len(x)
    gram += np.eye(len(gram)) * (1e-4 * np.trace(gram) / len(gram) + 1e-8)
    weights = np.linalg.solve(gram, (x - mean_x).T @ (y - mean_y) / len(x))
    return weights, mean_y - mean_x @ weights


def narrow(teacher: keras.Model, student: keras.Model, images: Array, seed: int) -> None:
    """Set the student's weights to a narrowed teacher's, judged on normalised images."""
    teacher_names = {layer.name for layer in teacher.layers}

    def rows(model: keras.Model, *names: str, at: Array | None = None) -> list[Array]:
        """Return activations of the layers at the same randomly drawn positions of every image."""
        part = keras.Model(model.input, [model.get_layer(n).output for n in names])
        found: list[list[Array]] = [[] for _ in names]
        for start in range(0, len(images), 64):
            out = part(ops.convert_to_tensor(images[start : start + 64]), training=False)
            for store, value in zip(found, out if isinstance(out, list) else [out], strict=True):
                value = ops.convert_to_numpy(value)
                value = value.reshape(len(value), -1, value.shape[-1])
                store.append(value[:, positions(value.shape[1])])
        return [np.concatenate(f).reshape(-1, f[0].shape[-1]).astype("float64") for f in found]

    def positions(count: int) -> Array:
        return np.random.default_rng((seed, 4, count)).permutation(count)[:32]

    def convolution(layer: str, norm: str) -> tuple[Array, Array]:
        """Return the teacher's kernel and offset with its BatchNorm folded in."""
        gamma, beta, mean, variance = teacher.get_layer(norm).get_weights()
        gain = gamma / np.sqrt(variance + teacher.get_layer(norm).epsilon)
        kernel = teacher.get_layer(layer).get_weights()[0]
        return kernel * (gain[:, None] if "depthwise" in layer else gain), beta - mean * gain

    def put(layer: str, norm: str, kernel: Array, offset: Array) -> None:
        target, ones = student.get_layer(layer), np.ones(len(offset))
        target.set_weights([kernel.reshape(target.get_weights()[0].shape)])
        epsilon = student.get_layer(norm).epsilon
        student.get_layer(norm).set_weights([ones, offset, 0 * ones, ones - epsilon])

    def name(block: int, part: str) -> str:
        return (f"block_{block}" if block else "expanded_conv") + f"_{part}"

    def stream(block: int) -> str:
        part = "add" if name(block, "add") in teacher_names else "project_BN"
        return name(block, part)

    bases: dict[int, Array] = {}
    for stage in STAGES:
        width = student.get_layer(name(stage[0], "project")).filters
        values = rows(teacher, *(stream(block) for block in stage))
        _, vectors = np.linalg.eigh(sum(np.cov(v, rowvar=False) for v in values))
        bases.update(dict.fromkeys(stage, vectors[:, ::-1][:, :width]))

    hidden, target = rows(teacher, name(0, "depthwise_relu"), name(0, "project_BN"))
    kept = keep_columns(hidden, target @ bases[0], student.get_layer("Conv1").filters)
    kernel, offset = convolution("Conv1", "bn_Conv1")
    put("Conv1", "bn_Conv1", kernel[..., kept], offset[kept])
    for block, basis in sorted(bases.items()):
        if block:
            hidden, target = rows(teacher, name(block, "depthwise_relu"), name(block, "project_BN"))
            count = student.get_layer(name(block, "expand")).filters
            kept = keep_columns(hidden, target @ basis, count)
            (before,) = rows(student, stream(block - 1))
            (target,) = rows(teacher, name(block, "expand_BN"))
            put(name(block, "expand"), name(block, "expand_BN"), *regress(before, target[:, kept]))
        kernel, offset = convolution(name(block, "depthwise"), name(block, "depthwise_BN"))
        put(name(block, "depthwise"), name(block, "depthwise_BN"), kernel[:, :, kept], offset[kept])
        (hidden,) = rows(student, name(block, "depthwise_relu"))
        target = rows(teacher, stream(block))[0] @ basis
        if stream(block).endswith("_add"):
            target = target - before
        put(name(block, "project"), name(block, "project_BN"), *regress(hidden, target))
    (before,), (target,) = rows(student, stream(16)), rows(teacher, "Conv_1_bn")
    put("Conv_1", "Conv_1_bn", *regress(before, target))
