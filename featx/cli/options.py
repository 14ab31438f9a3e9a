"""Options that mean the same in every command, and what is made of them."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from featx.terminal import log_to_stderr, visible

if TYPE_CHECKING:
    from featx import ImagePolicy
    from featx.cache.features import Features
    from featx.files.outputs import Target

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _set_debug(_: click.Context, __: click.Parameter, value: bool) -> None:
    if value:
        os.environ["FEATX_DEBUG"] = "1"
    log_to_stderr(debug=value)


debug = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_debug,
    help="Show tracebacks and the logging of libraries.",
)


class Command(click.Command):
    """A command that refuses an option given twice, where click takes the last one in silence."""

    def make_parser(self, ctx: click.Context) -> Any:
        """Return click's parser, which then looks at what it found."""
        parser = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_once(args: list[str]) -> Any:
            values, rest, order = parse(args)
            for param in order:
                _require_once(ctx, param, order.count(param))
            return values, rest, order

        parser.parse_args = parse_once  # type: ignore[method-assign]
        return parser


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


def _require_once(context: click.Context, param: click.Parameter, count: int) -> None:
    if count < 2 or not isinstance(param, click.Option) or param.multiple or param.count:
        return
    if param.is_flag and not param.secondary_opts:
        return  # said twice, it means the same
    name = "/".join([param.opts[-1], *param.secondary_opts])
    several = context.info_name == "train" and param.name == "head"
    more = ", or compare several with `featx search`" if several else ""
    raise click.UsageError(
        f"{name} takes one value and is given {count} times: give it once{more}", context
    )


def command(
    name: str, *options: Decorator, group: click.Group | None = None, short_help: str | None = None
) -> Callable[[Callable[..., Any]], click.Command]:
    """Return what makes a command of a function: its options in the order of its help.

    ``--debug`` is one of every command. A command may belong to a group.
    """

    def make(function: Callable[..., Any]) -> click.Command:
        decorated = stacked(*options, debug)(function)
        made = click.command(name, cls=Command, short_help=short_help)(decorated)
        if group is not None:
            group.add_command(made)
        return made

    return make


def stacked(*options: Decorator) -> Decorator:
    """Return several options as one, in the order of the help."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


def flag(*names: str, help: str, **more: Any) -> Decorator:
    """Return an option that is there or not."""
    return click.option(*names, is_flag=True, help=help, **more)


def whole(
    *names: str,
    help: str = "",
    default: int | None = None,
    least: int | None = None,
    **more: Any,
) -> Decorator:
    """Return an option that is a whole number."""
    if default is not None:
        more |= {"default": default, "show_default": True}
    kind = click.INT if least is None else click.IntRange(min=least)
    return click.option(*names, type=kind, help=help or None, **more)


def real(*names: str, default: float, help: str = "", **more: Any) -> Decorator:
    """Return an option that is a number."""
    more |= {"default": default, "show_default": True}
    return click.option(*names, type=float, help=help or None, **more)


def choice(*names: str, values: list[str], default: str, help: str, **more: Any) -> Decorator:
    """Return an option that is one of some words."""
    more |= {"default": default, "show_default": True}
    return click.option(*names, type=click.Choice(values), help=help, **more)


def file_path(*names: str, help: str, **more: Any) -> Decorator:
    """Return an option that is the path of a file."""
    return click.option(*names, type=click.Path(dir_okay=False, path_type=Path), help=help, **more)


def _complete_backbone(_: Any, __: Any, incomplete: str) -> list[CompletionItem]:
    from featx.backbones.catalog import CATALOG

    return [
        CompletionItem(name, help=f"{row.features} features")
        for name, row in CATALOG.items()
        if name.startswith(incomplete)
    ]


def _read_names(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> Any:
    from featx.exceptions import DatasetError
    from featx.images.labels import parse_names

    try:
        return parse_names(values)
    except DatasetError as error:
        raise click.BadParameter(str(error)) from error


_FAIL = "featx.fail_on_failed"


def _keep_fail(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.meta[_FAIL] = value


fail_on_failed = flag(
    "--fail-on-failed",
    expose_value=False,
    callback=_keep_fail,
    help="Exit with code 1, when all is done, if an image could not be read.",
)


def exit_code(failed: Sized) -> int:
    """Return the exit code of a command that could not read some images."""
    return int(len(failed) > 0 and click.get_current_context().meta[_FAIL])


reading = stacked(
    click.option(
        "--splits",
        multiple=True,
        callback=_read_names,
        metavar="NAME=SPLIT",
        help="What a name that is not understood means: pilot=test, or =train, =val. Repeat it "
        "for several. none: all folders are classes.",
    ),
    click.option(
        "--root",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder, or address of one, that relative paths of a table start from.  [default: "
        "the table's]",
    ),
    *(
        click.option(f"--{kind}-column", metavar="NAME", help=f"{what}  [default: {kind}]")
        for kind, what in (
            ("path", "The column of a table that has the paths."),
            ("label", "The column that has the labels."),
            ("split", "The column that has the splits."),
            ("group", "The column of groups: images of one group are never held out apart."),
        )
    ),
    flag("--follow-urls", help="Read images whose path in a table or a list is an address."),
    fail_on_failed,
)
view_policy = click.option(
    "--view-policy",
    show_default="flip-crop-colour-1",
    help="How views are drawn: flip-1, flip-crop-1 or flip-crop-colour-1.",
)


def _checked_window(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    from featx.exceptions import DatasetError

    try:
        _image_policy("stretch", None, value)
    except DatasetError as error:
        raise click.BadParameter(str(error)) from error
    return value


# The choice of the backbone, of what is taken from it, and of how DATA is read.
backbone = stacked(
    reading,
    click.option(
        "-b",
        "--backbone",
        multiple=True,
        show_default="tiny, the one that comes with featx",
        shell_complete=_complete_backbone,
        help="Name of a backbone, file:PATH.keras, onnx:PATH.onnx, savedmodel:FOLDER or "
        "hub:FOLDER. Repeat it for several.",
    ),
    click.option(
        "--weights",
        multiple=True,
        default=None,
        help="imagenet (the default), a file, or random:SEED; NAME=FILE for one of several "
        "backbones.",
    ),
    click.option(
        "--tap",
        "taps",
        multiple=True,
        default=["avg"],
        show_default="avg; in search, avg and inner",
        help="Where in the network: avg, max, gem, flatten, grid:2, inner (several blocks inside), "
        "block_12:max, ... Repeat it for several.",
    ),
    whole(
        "--input-size",
        least=1,
        help="Height and width of the network's input in pixels.  [default: the backbone's]",
    ),
    choice(
        "--resize",
        values=["stretch", "crop"],
        default="stretch",
        help="Stretch to the input size, or scale and cut the centre.",
    ),
    click.option(
        "--window",
        callback=_checked_window,
        metavar="MIN:MAX|image",
        help="For images of more than 8 bits: the values that become black and white, such as "
        "0:4095 or -1000:400. image: the lowest and highest value of each image.",
    ),
    click.option(
        "--draft/--no-draft",
        default=None,
        help="Decode large JPEG files at a reduced size, never below twice the input: several "
        "times as fast on photographs of a camera, with slightly other features.  [default: "
        "--draft, but --no-draft for what a cache has from featx 0.1]",
    ),
    click.option(
        "--preprocessing",
        help="Only for backbones of one's own: none, unit, tf, torch or caffe.  "
        "[default: none for file:, the preset's for hub:, for savedmodel: unit, or none where "
        "it rescales pixels itself]",
    ),
    flag(
        "--trust",
        help="Run code of others: a savedmodel: backbone, or a head by its import path, as in "
        "lightgbm.LGBMClassifier.",
    ),
    whole("--batch-size", least=1, help="Images in a batch.  [default: the engine's choice]"),
    click.option(
        "--engine",
        default="auto",
        show_default=True,
        help="auto (keras on a GPU, else openvino), keras or openvino.",
    ),
    choice(
        "--precision",
        values=["f32", "fast", "int8", "bf16", "f16", "mixed"],
        default="f32",
        help="Arithmetic of the network. fast: bf16 or f16 where the processor has it, mixed "
        "(Keras's half precision) on a GPU, else f32. int8: 8-bit integers, calibrated on DATA "
        "(extra: int8). All but f32 have features of their own, which are compared with f32 on "
        "100 images.",
    ),
    whole(
        "--views",
        default=0,
        least=0,
        help="Augmented views of each image beside the image itself.",
    ),
    view_policy,
    whole("--view-seed", default=0, least=0, help="Seed of the views."),
)


def is_given(name: str) -> bool:
    """Return whether the user gave an option of the running command."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT)


def reading_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Take out of a command's settings how DATA is read, for the functions that take data."""
    from featx.images.reading import Reading

    return Reading.taken(settings).options


def extraction_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Take out of a command's settings those that `featx.extract` has too."""
    from featx import ViewPolicy

    names = ("input_size", "preprocessing", "trust", "engine", "precision", "views")
    arguments = {name: settings.pop(name) for name in names} | reading_arguments(settings)
    backbone, weights, policy = (settings.pop(n) for n in ("backbone", "weights", "view_policy"))
    weights = _weights_by_backbone(weights, backbone or ("tiny",))
    views = {"policy": policy} if policy else {}
    return {
        **arguments,
        "backbone": backbone or None,
        "weights": weights,
        "taps": settings.pop("taps"),
        "image": _image_policy(*(settings.pop(name) for name in ("resize", "draft", "window"))),
        "batch_size": settings.pop("batch_size") or "auto",
        "view_policy": ViewPolicy(**views, seed=settings.pop("view_seed")),
    }


def _image_policy(resize: Any, draft: bool | None, window: str | None = None) -> ImagePolicy | None:
    """Return the policy that was asked for, None where it is the backbone's own."""
    from featx import ImagePolicy
    from featx.exceptions import DatasetError

    if resize == "stretch" and draft is None and window is None:
        return None
    ends: Any = window
    if window is not None and window != "image":
        ends = window.split(":")
        try:
            ends = tuple(map(float, ends))
        except ValueError as error:
            raise DatasetError(
                f"expected MIN:MAX, such as 0:4095, or image, received {window!r}"
            ) from error
    return ImagePolicy(resize=resize, draft=draft is not False, window=ends)


def _weights_by_backbone(values: tuple[str, ...], backbones: tuple[str, ...]) -> Any:
    """Read ``--weights``: one choice for all, or ``NAME=CHOICE`` for each."""
    if not values:
        return None
    pairs = [value.partition("=") for value in values]
    if len(values) == 1 and (not pairs[0][1] or pairs[0][0] not in backbones):
        return values[0]
    for name, equals, _ in pairs:
        if not equals or name not in backbones:
            raise click.UsageError(
                f"expected --weights NAME=CHOICE with NAME among {', '.join(backbones)}, "
                f"received {name!r}"
            )
    return {name: choice for name, _, choice in pairs}


embed = flag(
    "--embed", help="Keep the backbone's file in the model, for machines that do not have it."
)


def force(*aliases: str) -> Decorator:
    """Return ``--force``, with other names for it."""
    return flag(
        "--force",
        *aliases,
        "force",
        help="Replace a file that featx did not make; never one that is read.",
    )


cache = click.option(
    "--cache",
    envvar="FEATX_CACHE",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("cache"),
    show_default=True,
    help="Cache folder.",
)
as_json = flag("--json", "as_json", help="Print one JSON object on standard output.")
seed = whole("--seed", default=0, help="Seed of everything random.")
multilabel = flag(
    "--multilabel",
    help="A label such as ant|winged is several, each predicted by itself; so are a CSV's "
    "columns of 0 and 1.",
)
regression = stacked(
    flag("--regression", help="Learn numbers: the labels of DATA, or columns of a table."),
    click.option(
        "--target-column",
        "target_columns",
        multiple=True,
        metavar="NAME",
        help="A column of numbers of a CSV, in place of label; with --regression. Repeat it for "
        "several.",
    ),
)
label_kind = choice(
    "--label-kind",
    values=["auto", "class"],
    default="auto",
    help="class: train also on labels that look like measurements or like several labels.",
)
balanced = flag("--balanced", help="Let each class count the same, however few images it has.")
rule = stacked(
    click.option(
        "--optimise",
        metavar="SCORE",
        help="Tune what decides, in place of the largest probability: f1, balanced_accuracy, or "
        "cost:FILE, a CSV of what it costs to predict the class of a column where that of the row "
        "is true.",
    ),
    click.option(
        "--coverage",
        type=float,
        metavar="SHARE",
        help="Learn sets that hold the label of this share of images, such as 0.95: predict "
        "--abstain then marks images for a person.",
    ),
    choice(
        "--coverage-by",
        values=["all", "class"],
        default="all",
        help="class: that share of each class.",
    ),
)
weights = click.option(
    "--weights", help="The backbone's weights, when they are not where they were."
)
loading = stacked(
    weights, flag("--trust", help="Load any scikit-learn head; run a savedmodel: backbone.")
)
output = stacked(file_path("-o", "--output", help="Where to save it."), force())
report = file_path(
    "--report", "report_file", help="Write a page with the images, scores and plots there."
)
bootstrap = whole(
    "--bootstrap", default=1000, least=0, help="Samples behind the intervals; 0 for none."
)
model = click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))


def _shard(_: Any, __: Any, value: str | None) -> tuple[int, int] | None:
    """Read which share of how many is meant."""
    if value is None:
        return None
    number, slash, count = value.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise click.BadParameter(f"expected a share such as 1/4, received {value!r}")
    return int(number), int(count)


# Where parts of the work are done, and which of them.
cluster = stacked(
    click.option(
        "--on",
        metavar="ENGINE",
        help="Compute on a cluster: ray (that of RAY_ADDRESS, else one on this machine), dask or "
        "dask=tcp://HOST:8786.  [default: in this process]",
    ),
    whole("--task-cpus", least=1, default=1, help="Processors of one task, with --on."),
    click.option(
        "--task-gpus",
        type=click.FloatRange(min=0),
        default=0.0,
        help="GPUs of one task, with --on.",
    ),
    click.option(
        "--shard",
        metavar="I/N",
        callback=_shard,
        help="Compute one of N shares of the images, for job arrays: 1/4 to 4/4.",
    ),
)


def _checked_size(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    from featx.exceptions import HeadError
    from featx.memory import as_bytes

    try:
        if value is not None:
            as_bytes(value, name="it")
    except HeadError as error:
        raise click.BadParameter(str(error)) from error
    return value


def memory(*, help: str, **more: Any) -> Decorator:
    """Return the option that bounds the memory for features."""
    return click.option("--max-ram", callback=_checked_size, metavar="SIZE", help=help, **more)


max_ram = memory(
    help="Train on batches within this memory, as 1GiB, where features are larger than it."
)


_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.IGNORECASE)
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def read_seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of a time span such as ``90s``, ``1.5h`` or ``1d``."""
    if value is None:
        return None
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise click.BadParameter(f"expected a time such as 90s, 10m, 1h or 1d, received {value!r}")
    return float(match[1]) * _UNITS_S[match[2].lower()]


def complete_dataset(ctx: click.Context, _: Any, incomplete: str) -> list[CompletionItem]:
    """Return the datasets of the cache whose names begin so."""
    from featx.cache.layout import CacheLayout
    from featx.cache.manifest import manifest_names

    names = manifest_names(CacheLayout.at(ctx.params.get("cache")))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _complete_data(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    return [*complete_dataset(ctx, param, incomplete), CompletionItem(incomplete, type="file")]


data = click.argument("data", metavar="DATA", shell_complete=_complete_data)


block = stacked(
    click.option(
        "-b",
        "--backbone",
        shell_complete=_complete_backbone,
        help="Which features of DATA, where it has several.  [default: its only ones; of new DATA, "
        "tiny]",
    ),
    click.option("--tap", help="Which tap of it.  [default: its only one; of new DATA, avg]"),
    weights,
    flag("--trust", help="Run a savedmodel: backbone, which may do anything."),
)


def open_block(
    data: str, cache: Path, backbone: str | None, tap: str | None, **extraction: Any
) -> tuple[Features, dict[str, str]]:
    """Return features that the cache has of DATA, else computed now, and which block is meant."""
    import featx
    from featx.backbones.source import canonical_name
    from featx.backbones.taps import parse_tap
    from featx.cache.layout import CacheLayout
    from featx.extraction.backbone_choice import known_dataset
    from featx.extraction.job import find_named

    layout = CacheLayout.at(cache)
    manifest = find_named(layout, data) or known_dataset(layout, data)
    if manifest is None:
        features = featx.extract(
            data, backbone=backbone, taps=tap, cache=cache, progress=True, **extraction
        )
    else:
        features = featx.Features.open(manifest.name, cache=cache)
    plain = [block for block in features.blocks if block.view is None]
    name = None if backbone is None else canonical_name(backbone)
    fits = [
        block
        for block in plain
        if name in (None, block.backbone)
        and (tap is None or block.tap in (tap, str(parse_tap(tap))))
    ]
    if len(fits) != 1:
        step = "choose one with -b and --tap" if fits else "extract the ones that you want first"
        there = "".join(f"\n  -b {block.backbone} --tap {block.tap}" for block in fits or plain)
        raise click.UsageError(
            f"{features.name!r} has {len(fits)} such blocks of features: {step}; there are:{there}"
        )
    return features, {"backbone": fits[0].backbone, "tap": fits[0].tap}


def check_targets(regression: bool, columns: tuple[str, ...]) -> None:
    """Refuse columns of numbers where classes are learnt."""
    if columns and not regression:
        raise click.UsageError("--target-column names numbers to learn: add --regression")


def image_arguments(images: Iterable[str], left_out: list[tuple[str, str]]) -> Iterator[str]:
    """Return names of files: patterns are expanded in arguments, and none in standard input.

    Files of folders and patterns that are no images are added to `left_out`, with the reasons.
    """
    from featx.images.scan import FileName, image_names

    for item in images:
        if item == "-":
            # Bytes, since names of files need not be valid text.
            lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
            yield from (FileName(os.fsdecode(line)) for line in lines if line.strip())
        else:
            yield from map(FileName, image_names([item], strict=True, left_out=left_out))


def complete_head(_: Any, __: Any, incomplete: str) -> list[str]:
    """Return the heads whose names begin so."""
    from featx.heads.table import head_names

    names = {*head_names(), *head_names(regression=True)}
    return sorted(name for name in names if name.startswith(incomplete))


def check_output(
    target: Target, recognise: Callable[[Path], bool], what: str, *, force: bool, data: str = ""
) -> None:
    """Raise `OutputError` unless a command may write a file; all its paths are inputs."""
    from featx.files.outputs import check_output as check

    params = click.get_current_context().params
    outputs = {"output", "csv_file", "confusion", "report_file"}
    inputs = [
        value
        for name, values in params.items()
        if name not in outputs
        for value in (values if isinstance(values, tuple) else (values,))
        if isinstance(value, str | os.PathLike)
    ]
    images = partial(_images, data, params["cache"])
    check(target, recognise, what, inputs=inputs, images=images, force=force)


def _images(data: str, cache: Path) -> list[Path]:
    """Return the images of a table or of a dataset of the cache."""
    from featx.cache.layout import CacheLayout
    from featx.cache.manifest import find_manifest
    from featx.exceptions import FeatxError
    from featx.images.dataset import ImageDataset

    try:
        if Path(data).is_file():
            reading = reading_arguments(dict(click.get_current_context().params))
            dataset = ImageDataset.from_any(data, **reading)
            return [dataset.file(row) for row in range(len(dataset)) if dataset.arrays is None]
        manifest = find_manifest(CacheLayout.at(cache), data)
    except FeatxError:
        return []
    return [Path(manifest.root or "", path) for path in manifest.path]


def is_ruled(settings: dict[str, Any]) -> bool:
    """Tell whether a decision rule is asked for."""
    return settings["optimise"] is not None or settings["coverage"] is not None


def check_rule(settings: dict[str, Any], *, multilabel: bool) -> None:
    """Refuse early a decision rule that cannot be learnt."""
    from featx.selection.rules import RuleOptions

    names = ("optimise", "coverage", "coverage_by")
    RuleOptions.read(*(settings[name] for name in names), multilabel=multilabel, cv=settings["cv"])


def check_report(report: Path | None, data: str, *, force: bool) -> None:
    """Refuse early what a report could not be written over, or without."""
    if report is not None:
        from featx.files.outputs import as_target
        from featx.reporting.model_report import require_extras
        from featx.reporting.page import is_page

        check_output(as_target(report), is_page, "page", force=force, data=data)
        require_extras()


def write_report(result: Any, report: Path | None, *, seed: int, force: bool) -> str:
    """Write the page of a result where one is wanted, and return what to tell of it."""
    if report is None:
        return ""
    if result.scored is None:
        return "report    not written: nothing was measured"
    result.report(report, seed=seed, overwrite=force)
    return f"report    {shown_word(report)}"


def model_target(output: Path | None, data: str, *, force: bool) -> Target:
    """Return where a model of some data goes, once it is known that it may be written there."""
    from featx.files.outputs import as_target, is_model
    from featx.files.stores import address_name, as_address

    address = as_address(data)
    name = Path(data).resolve() if address is None else Path(address_name(address))
    target = as_target(output or Path(f"{name.stem}.featx"))
    check_output(target, is_model, "model", force=force, data=data)
    return target


def next_command(
    name: str,
    *words: str,
    options: Collection[str] = (),
    carried: Collection[str] = ("cache", "trust"),
) -> str:
    """Return a command as it can be pasted, with those options of this one that it needs too."""
    context = click.get_current_context()
    flags: list[str] = []
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if param.name not in carried or source is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[param.name]
        if isinstance(value, bool):
            flags.append(param.opts[0] if value else param.secondary_opts[0])
            continue
        if isinstance(value, dict):
            value = tuple(f"{name}={split}" for name, split in value.items())
        for single in value if isinstance(value, tuple) else (value,):
            flags += [param.opts[0], shown_word(single)]
    flags += [option for option in options if option not in flags]
    end = ["--"] if any(word.startswith("-") for word in words) else []
    shown = map(shown_word, words)
    return " ".join(map(_shell_word, ["featx", *name.split(), *flags, *end, *shown]))


def _shell_word(text: str) -> str:
    """Quote a word for a shell; what a terminal would not show is written by its bytes."""
    if visible(text) == text:
        return shlex.quote(text)
    encoded = (
        c if c.isprintable() and c not in "\\'" else "".join(f"\\x{b:02x}" for b in os.fsencode(c))
        for c in text
    )
    return f"$'{''.join(encoded)}'"


def next_prediction(model: Target, data: str, features: Features) -> str:
    """Return a command that tries a new model on images that are there."""
    from featx.exceptions import FeatxError
    from featx.files.stores import as_address, is_bucket, local_copy
    from featx.heads.storage import load_head
    from featx.models.model_file import read_artefact

    try:
        load_head(read_artefact(local_copy(model))[1])
        options = []
    except FeatxError:
        options = ["--trust"]
    manifest = features.manifest
    address = as_address(data)
    if Path(data).is_dir() or (address and is_bucket(address) and address.endswith("/")):
        return next_command("predict", str(model), data, options=options)
    first = Path(manifest.root or "", manifest.path[0])
    if first.is_file():
        return next_command("predict", str(model), str(first), options=options)
    return next_command("dataset show", features.name, carried=("cache",))


def command_line() -> str:
    """Return the command as it was typed but for secrets, for the provenance of what it writes."""
    return shlex.join(["featx", *map(shown_word, sys.argv[1:])])


def shown_word(word: object) -> str:
    """Return an argument of a command without what may be secret in an address."""
    from featx.files.stores import as_address, shown

    text = str(word)
    option, equals, value = text.partition("=") if text.startswith("-") else ("", "", text)
    address = as_address(value)
    return text if address is None else f"{option}{equals}{shown(address)}"
