"""What lies beside an exported file: its description, and the few lines that run it.

Both come to their places whole or not at all.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from featx.exceptions import ExportError, reason
from featx.exporting.formats import FORMATS, INPUT, OUTPUT, VALUES
from featx.files.outputs import beside, flush, flush_names
from featx.files.safe_json import Json
from featx.heads.targets import LABEL_THRESHOLD
from featx.models.classifier import ImageClassifier
from featx.models.regressor import ImageRegressor
from featx.spec import FeatureSpec

_TYPE, _VERSION = "featx-export", 1
_NO_TEXT = re.compile("[\ud800-\udfff]")


def as_json(value: Json) -> str:
    """Return JSON in which letters of any script are themselves, and always UTF-8."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _NO_TEXT.sub(lambda half: f"\\u{ord(half[0]):04x}", text) + "\n"


def description_path(path: Path) -> Path:
    """Return where the description of an export lies."""
    return path.with_name(f"{path.name}.json")


def report_path(path: Path) -> Path:
    """Return where the result of a verification lies."""
    return path.with_name(f"{path.name}.verification.json")


def describe(
    *,
    format: str,
    precision: str,
    model: ImageClassifier | ImageRegressor,
    spec: FeatureSpec,
    calibration: Json | None,
) -> Json:
    """Return the description of an export as JSON types."""
    height, width = spec.input_size_px
    head = model.head
    if model.regression:
        learnt: Json = {"values": list(model.value_names_), "spread": model.spread_.tolist()}
    else:
        learnt = {"classes": model.classes_.tolist()}
    head = head if isinstance(head, str) else type(head).__name__
    return {
        "type": _TYPE,
        "version": _VERSION,
        "format": format,
        "precision": precision,
        **learnt,
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": [None, height, width, 3],
            "colours": "RGB",
            # A network that is given these must not be given rescaled ones.
            "pixels": "whole numbers from 0 to 255; the network rescales them itself",
            "image": spec.image.to_dict(),
        },
        "output": {
            "name": VALUES if model.regression else OUTPUT,
            "dtype": "float32",
            "shape": [None, len(answer_names(learnt))],
            "multilabel": model.multilabel,
        },
        "model": {
            **model.block,
            "head": head,
            "spec_sha256": spec.digest,
        },
        **({} if model.decision_ is None else {"decision": model.decision_.to_dict()}),
        **({} if calibration is None else {"calibration": calibration}),
    }


def answer_names(description: Json) -> list[object]:
    """Return what the columns of an export's output are called: classes, or numbers."""
    names: list[object] = description["values" if "values" in description else "classes"]
    return names


def read_description(path: Path) -> Json:
    """Read the description that lies beside an export."""
    file = description_path(path)
    try:
        description: Json = dict(json.loads(file.read_text("utf-8")))
        kind, version = description["type"], description["version"]
        complete = isinstance(answer_names(description), list)
        complete &= {"format", "precision"} <= set(description)
        complete &= isinstance(description.get("calibration", {}).get("keys", []), list)
    except FileNotFoundError as error:
        raise ExportError(
            f"expected {file.name} beside {path}, with the names of its classes: keep the two "
            "together, or export the model again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{file} is damaged ({reason(error)}): export the model again") from error
    if kind != _TYPE or version != _VERSION or not complete:
        raise ExportError(
            f"{file} is of type {kind!r}, version {version!r}: expected {_TYPE!r}, version "
            f"{_VERSION}, as this featx writes it; export the model again"
        )
    return description


def refuse_existing(paths: Sequence[Path]) -> None:
    """Raise `ExportError` if something is there already, or the folder is not."""
    folder = paths[0].parent
    if not folder.is_dir():
        raise ExportError(f"expected -o PATH in a folder that exists, received {paths[0]}")
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ExportError(
                f"{path} exists already: name another path with -o, or replace it with "
                "--force (overwrite=True)"
            )


@contextmanager
def placed_whole(paths: Sequence[Path]) -> Iterator[Path]:
    """Make a folder whose files go to their places together when the block ends without error."""
    folder = beside(paths[-1])
    try:
        folder.mkdir()
        try:
            yield folder
            for path in paths:
                flush(folder / path.name)
                # A folder cannot be renamed over another one; the old one goes with this one.
                if path.is_dir() and not path.is_symlink():
                    path.rename(folder / f"{path.name}.old")
                (folder / path.name).replace(path)
            flush_names(paths[0].parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise ExportError(
            f"cannot write {paths[-1]}: {error.strerror or error}. Name a path with -o, in a "
            "folder that can be written"
        ) from error


_DECODE = '''\
import json

import numpy as np
{imports}
from PIL import Image, ImageOps


def pixels(path):
    """As in training: upright, RGB, {height} x {width}, uint8, a batch of one."""
    image = Image.open(path)
{draft}    image = ImageOps.exif_transpose(image)
{deep}    if image.has_transparency_data:  # over white
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(rgba, mask=rgba)
    image = image.convert("RGB")
    {resize}
    return np.asarray(image)[None]


with open({beside!r}, encoding="utf-8") as file:
    about = json.load(file)
{names} = about["{key}"]
'''

_DEEP = """\
    if image.mode.startswith("I"):  # 16-bit grey
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        image = Image.fromarray(grey.astype(np.uint8))
"""
_WINDOWED = """\
    if image.mode[0] in "IF":  # grey of more than 8 bits; colour has its high bytes
        values = np.asarray(image).astype(float)
        low, high = {ends}
        grey = np.rint(np.clip((values - low) * 255 / (high - low or 1), 0, 255))
        image = Image.fromarray(grey.astype(np.uint8))
"""
_SHOW_VALUES = "print(dict(zip(names, values.tolist())))\n"
_JAVASCRIPT_SHOW_VALUES = "console.log(Object.fromEntries(names.map((n, i) => [n, values[i]])));\n"

# How each rule decides, by language: of classes, the number of the best one.
_PYTHON_RULES = {
    "plain": "probabilities.argmax()",
    "threshold": 'int(probabilities[1] > about["decision"]["values"][0])',
    "factors": '(probabilities * about["decision"]["values"]).argmax()',
    "costs": '(probabilities @ np.array(about["decision"]["values"])).argmin()',
}
_SHOW = "best = {rule}\nprint(classes[best], probabilities[best])\n"
_SHOW_SETS = (
    "limits = {limits}\n"
    "print([name for name, p, limit in zip(classes, probabilities, limits) if p > limit])\n"
)
_PYTHON_WEIGHED = {
    "factors": 'weighed = probabilities * about["decision"]["values"]\nweighed /= weighed.sum()\n',
    "threshold": (
        'limit = about["decision"]["values"][0]\n'
        "weighed = probabilities * np.array([limit, 1 - limit])\nweighed /= weighed.sum()\n"
    ),
    "thresholds": (
        'limits = np.array(about["decision"]["values"])\nweighed = probabilities * (1 - limits)\n'
        "weighed /= weighed + (1 - probabilities) * limits\n"
    ),
}
_PYTHON_SETS = """\
least = about["decision"]["coverage"]["least"]  # the labels that it may have
print([name for name, p, limit in zip(classes, weighed, least) if p >= limit])
"""

_CANVAS = """\
const {{ {key} }} = await (await fetch("{beside}")).json();
const context = new OffscreenCanvas({width}, {height}).getContext("2d");
context.imageSmoothingQuality = "high"; // near to the model's own resizing, not equal to it
context.drawImage(image, {crop}0, 0, {width}, {height}); // an <img>
const rgba = context.getImageData(0, 0, {width}, {height}).data;
const rgb = rgba.filter((_, i) => i % 4 < 3);
"""

_LARGEST = "const best = scores.indexOf(Math.max(...scores));\n"
_JAVASCRIPT_RULES = {
    "plain": f"const scores = probabilities;\n{_LARGEST}",
    "threshold": "const best = probabilities[1] > decision.values[0] ? 1 : 0;\n",
    "factors": f"const scores = probabilities.map((p, i) => p * decision.values[i]);\n{_LARGEST}",
    "costs": (
        "const scores = classes.map((_, i) =>\n"
        "  -probabilities.reduce((sum, p, row) => sum + p * decision.values[row][i], 0));\n"
        f"{_LARGEST}"
    ),
}
_JAVASCRIPT_SHOW = "{rule}console.log(classes[best], probabilities[best]);\n"
_JAVASCRIPT_SHOW_SETS = "console.log(classes.filter((_, i) => probabilities[i] > {limit}));\n"
_TOTAL = "const total = products.reduce((sum, p) => sum + p, 0);\n"
_JAVASCRIPT_WEIGHED = {
    "factors": (
        "const products = Array.from(probabilities, (p, i) => p * decision.values[i]);\n"
        f"{_TOTAL}const weighed = products.map((p) => p / total);\n"
    ),
    "threshold": (
        "const limit = decision.values[0];\n"
        "const products = [probabilities[0] * limit, probabilities[1] * (1 - limit)];\n"
        f"{_TOTAL}const weighed = products.map((p) => p / total);\n"
    ),
    "thresholds": (
        "const weighed = Array.from(probabilities, (p, i) => p * (1 - decision.values[i]) /\n"
        "  (p * (1 - decision.values[i]) + (1 - p) * decision.values[i]));\n"
    ),
}
_JAVASCRIPT_SETS = (
    "console.log(classes.filter((_, i) => weighed[i] >= decision.coverage.least[i]));\n"
)


def serving_code(path: Path, description: Json) -> dict[str, str]:
    """Return the lines that run an export, by language."""
    row, (_, height, width, _) = FORMATS[description["format"]], description["input"]["shape"]
    policy = description["input"]["image"]
    file = description_path(path)
    numbers = "values" in description
    runs = {"python": row.python, "javascript": row.javascript}
    if numbers:  # the templates call the output and its variable after probabilities
        runs = {language: text.replace(OUTPUT, VALUES) for language, text in runs.items()}
    imports, _, rest = runs["python"].format(path=str(path)).partition("\n\n")
    python = _DECODE.format(
        imports=imports,
        height=height,
        width=width,
        beside=str(file),
        names="names" if numbers else "classes",
        key="values" if numbers else "classes",
        draft=f'    image.draft("RGB", ({2 * width}, {2 * height}))\n' if policy["draft"] else "",
        deep=_deep(policy),
        resize=_resize(policy, height, width),
    )
    decision = description.get("decision", {"kind": "plain"})
    several, kind = description["output"]["multilabel"], decision["kind"]
    if numbers:
        show, show_javascript = _SHOW_VALUES, _JAVASCRIPT_SHOW_VALUES
    elif several:
        plain = kind == "plain"
        limits = f"[{LABEL_THRESHOLD}] * len(classes)" if plain else 'about["decision"]["values"]'
        show = _SHOW_SETS.format(limits=limits)
        limit = str(LABEL_THRESHOLD) if plain else "decision.values[i]"
        show_javascript = _JAVASCRIPT_SHOW_SETS.format(limit=limit)
    else:
        show = _SHOW.format(rule=_PYTHON_RULES[kind])
        show_javascript = _JAVASCRIPT_SHOW.format(rule=_JAVASCRIPT_RULES[kind])
    if "coverage" in decision:
        show += _PYTHON_WEIGHED.get(kind, "weighed = probabilities\n") + _PYTHON_SETS
        show_javascript += _JAVASCRIPT_WEIGHED.get(kind, "const weighed = probabilities;\n")
        show_javascript += _JAVASCRIPT_SETS
    code = {"python": f"{python}\n{rest}{show}"}
    if row.javascript:
        crop = "left, top, w, h, " if policy["resize"] == "crop" else ""
        size = {"height": height, "width": width}
        key = "values: names" if numbers else "classes, decision"
        canvas = _CANVAS.format(beside=file.name, key=key, crop=crop, **size)
        if crop:
            canvas = _centre(height, width) + canvas
        names = {"file": path.name, "canvas": canvas}
        lines = runs["javascript"].format(**names, height=height, width=width)
        code["javascript"] = lines + show_javascript
    return code


def _deep(policy: Json) -> str:
    window = policy.get("window")
    if window is None:
        return _DEEP
    ends = "values.min(), values.max()" if window == "image" else "{}, {}".format(*window)
    return _WINDOWED.format(ends=ends)


def _resize(policy: Json, height: int, width: int) -> str:
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
