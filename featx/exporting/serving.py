"""The few lines that run an exported file, to be copied into a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featx.exporting.description import description_path
from featx.heads.targets import LABEL_THRESHOLD

_DECODE = '''\
import json

import numpy as np
{imports}
from PIL import Image, ImageOps


def pixels(path):
    """As in training: upright, RGB, {height} x {width}, uint8, a batch of one."""
    image = Image.open(path)
{draft}    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:  # over white
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(rgba, mask=rgba)
    image = image.convert("RGB")
    {resize}
    return np.asarray(image)[None]


with open({beside!r}, encoding="utf-8") as file:
    classes = json.load(file)["classes"]
'''

_RUN = {
    "keras": """\
import keras

model = keras.models.load_model({path!r}, compile=False)
probabilities = model.predict_on_batch(pixels("new.jpg"))[0]
""",
    "savedmodel": """\
import tensorflow as tf

model = tf.saved_model.load({path!r})
serve = model.signatures["serving_default"]
probabilities = serve(pixels=tf.constant(pixels("new.jpg")))["probabilities"].numpy()[0]
""",
    "tflite": """\
from ai_edge_litert.interpreter import Interpreter  # pip install ai-edge-litert

model = Interpreter({path!r}).get_signature_runner()
probabilities = model(pixels=pixels("new.jpg"))["probabilities"][0]
""",
    "onnx": """\
import onnxruntime

model = onnxruntime.InferenceSession({path!r})
probabilities = model.run(["probabilities"], {{"pixels": pixels("new.jpg")}})[0][0]
""",
    "openvino": """\
import openvino

model = openvino.compile_model({path!r}, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
probabilities = model([pixels("new.jpg")])["probabilities"][0]
""",
}

_SHOW = "print(classes[probabilities.argmax()], probabilities.max())\n"
_SHOW_SETS = f"print([name for name, p in zip(classes, probabilities) if p > {LABEL_THRESHOLD}])\n"

_CANVAS = """\
const {{ classes }} = await (await fetch("{beside}")).json();
const context = new OffscreenCanvas({width}, {height}).getContext("2d");
context.imageSmoothingQuality = "high"; // near to the model's own resizing, not equal to it
context.drawImage(image, {crop}0, 0, {width}, {height}); // an <img>
const rgba = context.getImageData(0, 0, {width}, {height}).data;
const rgb = rgba.filter((_, i) => i % 4 < 3);
"""

_JAVASCRIPT = {
    "tflite": """\
// <script src="https://cdn.jsdelivr.net/npm/@tensorflow/tfjs"></script>
// <script src="https://cdn.jsdelivr.net/npm/@tensorflow/tfjs-tflite/dist/tf-tflite.min.js"></script>
const model = await tflite.loadTFLiteModel("{file}");
{canvas}\
const output = model.predict(tf.tensor(Int32Array.from(rgb), [1, {height}, {width}, 3], "int32"));
const probabilities = await (output.probabilities ?? output).data();
""",
    "onnx": """\
import * as ort from "onnxruntime-web"; // npm install onnxruntime-web
const session = await ort.InferenceSession.create("{file}");
{canvas}\
const pixels = new ort.Tensor("uint8", Uint8Array.from(rgb), [1, {height}, {width}, 3]);
const probabilities = (await session.run({{ pixels }})).probabilities.data;
""",
}

_JAVASCRIPT_SHOW = (
    "const best = probabilities.indexOf(Math.max(...probabilities));\n"
    "console.log(classes[best], probabilities[best]);\n"
)
_JAVASCRIPT_SHOW_SETS = (
    f"console.log(classes.filter((_, i) => probabilities[i] > {LABEL_THRESHOLD}));\n"
)


def serving_code(path: Path, description: dict[str, Any]) -> dict[str, str]:
    """Return the lines that run an export."""
    name, (_, height, width, _) = description["format"], description["input"]["shape"]
    policy = description["input"]["image"]
    beside = description_path(path)
    imports, _, rest = _RUN[name].format(path=str(path)).partition("\n\n")
    python = _DECODE.format(
        imports=imports,
        height=height,
        width=width,
        beside=str(beside),
        draft=f'    image.draft("RGB", ({2 * width}, {2 * height}))\n' if policy["draft"] else "",
        resize=_resize(policy, height, width),
    )
    several = description["output"]["multilabel"]
    code = {"python": f"{python}\n{rest}{_SHOW_SETS if several else _SHOW}"}
    if name in _JAVASCRIPT:
        crop = "left, top, w, h, " if policy["resize"] == "crop" else ""
        canvas = _CANVAS.format(beside=beside.name, height=height, width=width, crop=crop)
        if crop:
            canvas = _centre(height, width) + canvas
        lines = _JAVASCRIPT[name].format(file=path.name, canvas=canvas, height=height, width=width)
        code["javascript"] = lines + (_JAVASCRIPT_SHOW_SETS if several else _JAVASCRIPT_SHOW)
    return code


def _resize(policy: dict[str, Any], height: int, width: int) -> str:
    size, resample = f"({width}, {height})", f"Image.Resampling.{policy['interpolation'].upper()}"
    if policy["resize"] == "crop":
        return (
            f"w = max(1, min(image.width, image.height * {width} // {height}))\n"
            f"    h = max(1, min(image.height, image.width * {height} // {width}))\n"
            "    left, top = (image.width - w) // 2, (image.height - h) // 2\n"
            "    box = (left, top, left + w, top + h)\n"
            f"    image = image.resize({size}, {resample}, box=box)"
        )
    return f"image = image.resize({size}, {resample})"


def _centre(height: int, width: int) -> str:
    return (
        f"const scale = Math.min(image.naturalWidth / {width}, image.naturalHeight / {height});\n"
        f"const w = scale * {width}, h = scale * {height};\n"
        "const left = (image.naturalWidth - w) / 2, top = (image.naturalHeight - h) / 2;\n"
    )
