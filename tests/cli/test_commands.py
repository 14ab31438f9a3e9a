from __future__ import annotations

import csv
import io
import json

import pytest

import featx
from featx.cli.main import COMMANDS, cli

NOISE = ("tensorflow", "cuda", "oneDNN", "absl", "WARNING", "I0000", "E0000")


def is_quiet(result):
    return not any(word in result.stderr for word in NOISE)


@pytest.fixture
def options(small_network):
    return ("-b", f"file:{small_network}")


@pytest.fixture
def model(featx_command, photos, options, tmp_path):
    result = featx_command("train", photos, *options, "-o", "m.featx")
    assert result.returncode == 0, result.stderr
    return tmp_path / "m.featx"


def test_help_shows_every_command_with_examples(featx_process):
    result = featx_process("--help")
    assert result.returncode == 0
    for name, line in COMMANDS.items():
        assert f"{name} " in result.stdout
        assert line in result.stdout
        command = cli.get_command(None, name)
        subcommands = getattr(command, "commands", {name: command}).values()
        for subcommand in subcommands:
            assert f"\n    featx {name}" in subcommand.help.replace("\x08", ""), subcommand.name


def test_help_and_cache_info_import_nothing_heavy(run_python, tmp_path):
    for args, allowed in (
        (["--help"], set()),
        (["train", "--help"], set()),
        (["cache", "info", "--cache", str(tmp_path)], {"numpy", "h5py"}),
    ):
        code = (
            "import sys\nfrom featx.cli.main import main\n"
            f"try: main({args!r})\nexcept SystemExit as e: assert not e.code\n"
            "heavy = {'tensorflow', 'keras', 'sklearn', 'scipy', 'numpy', 'h5py', 'PIL', 'rich',"
            " 'openvino'}\nprint(sorted(heavy & set(sys.modules)))"
        )
        loaded = set(json.loads(run_python(code).stdout.splitlines()[-1].replace("'", '"')))
        assert loaded <= allowed, args


def test_training_a_scikit_learn_head_on_cached_features_imports_no_tensorflow(
    photos, options, featx_command, run_python, tmp_path
):
    assert featx_command("extract", photos, *options).returncode == 0
    args = ["train", str(photos), *options, "--cache", str(tmp_path / "cache")]
    args += ["-o", str(tmp_path / "m.featx")]
    code = (
        "import sys\nfrom featx.cli.main import main\n"
        f"try: main({args!r})\nexcept SystemExit as e: assert not e.code\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    assert run_python(code).stdout.splitlines()[-1] == "[]"


def test_extract_reports_and_the_second_run_is_cached(
    featx_command, featx_process, photos, options
):
    first = featx_process("extract", photos, *options, "--json")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert set(report) >= {
        "dataset", "backbone", "spec", "images", "cached", "extracted", "failed", "seconds",
        "images_per_s",
    }  # fmt: skip
    assert (report["images"], report["extracted"]) == (12, 12)
    assert is_quiet(first)
    assert first.stderr == ""
    again = featx_command("extract", photos, *options)
    assert "12 cached, 0 extracted, 0 failed" in again.stdout
    assert "file:small avg: 12 x 16" in again.stdout


def test_extract_names_what_it_could_not_read(featx_command, photos, options):
    (photos / "red" / "3.jpg").write_bytes(b"\x00")
    (photos / "red" / "notes.txt").write_text("x")
    (photos / "red" / "odd.gif").write_bytes(b"GIF89a")
    result = featx_command("extract", photos, *options)
    assert result.returncode == 0
    assert "2 could not be read:" in result.stdout
    assert "red/3.jpg: " in result.stdout
    assert "1 are no images and were left out:\n    red/notes.txt" in result.stdout


def test_train_saves_a_model_and_says_how_good_it_is(
    model, featx_command, featx_process, photos, options
):
    result = featx_process("train", photos, *options, "-o", "again.featx")
    assert "accuracy  1.0000 (folds 1.000 to 1.000), 5-fold cross-validation" in result.stdout
    assert "12 cached, 0 extracted" in result.stdout
    assert is_quiet(result)
    assert model.exists()
    as_json = json.loads(featx_command("train", photos, *options, "-o", "j.featx", "--json").stdout)
    assert as_json["metrics"]["accuracy"] == 1.0


def test_train_takes_the_name_of_a_dataset(model, featx_command, options, photos):
    photos.rename(photos.with_name("gone"))
    result = featx_command("train", "photos", *options, "--head", "knn", "-o", "k.featx")
    assert result.returncode == 0, result.stderr
    assert "12 cached, 0 extracted" in result.stdout


def test_evaluate_prints_scores_and_confusion(model, featx_command, featx_process, photos):
    result = featx_process("evaluate", model, photos)
    assert result.returncode == 0, result.stderr
    assert "accuracy           1.0000" in result.stdout
    assert "true \\ predicted  blue  red" in result.stdout
    found = json.loads(featx_command("evaluate", model, photos, "--json").stdout)
    assert found["confusion"] == [[6, 0], [0, 6]]


def test_predict_gives_every_image_a_row(model, featx_process, photos):
    broken = photos / "broken.jpg"
    broken.write_text("no image")
    images = [photos / "red" / "0.jpg", broken, photos / "blue" / "1.jpg", "missing.jpg"]
    result = featx_process("predict", model, *images, "--format", "csv")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("path,label,probability,status")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["status"] for row in rows] == ["ok", "failed", "ok", "failed"]
    assert [row["label"] for row in rows] == ["red", "", "blue", ""]
    assert [row["path"] for row in rows] == [str(image) for image in images]
    assert rows[3]["reason"] == "no such file"
    assert is_quiet(result)


def test_predict_formats_folders_and_standard_input(model, featx_command, featx_process, photos):
    lines = featx_command("predict", model, photos / "red", "--format", "jsonl", "--top-k", "2")
    rows = [json.loads(line) for line in lines.stdout.splitlines()]
    assert len(rows) == 6
    assert {row["label"] for row in rows} == {"red"}
    assert all(len(row["top"]) == 2 for row in rows)
    assert sum(top["probability"] for top in rows[0]["top"]) == pytest.approx(1.0)
    table = featx_process("predict", model, "-", stdin=f"{photos / 'blue' / '2.jpg'}\n")
    assert "blue" in table.stdout.splitlines()[1]


def test_backbones_lists_and_describes(featx_command):
    listed = featx_command("backbones")
    assert listed.returncode == 0
    assert "mobilenet_v2" in listed.stdout
    assert len(json.loads(featx_command("backbones", "--json").stdout)["backbones"]) >= 40
    one = featx_command("backbones", "mobilenet_v2")
    assert "block_12" in one.stdout
    wrong = featx_command("backbones", "mobilnet")
    assert wrong.returncode == 1
    assert "did you mean 'mobilenet'" in wrong.stderr


def test_cache_info_tells_what_there_is(model, featx_command, featx_process):
    result = featx_process("cache", "info")
    assert result.returncode == 0
    assert "file-small-" in result.stdout
    assert "photos" in result.stdout
    found = json.loads(featx_command("cache", "info", "--json").stdout)
    assert found["datasets"][0]["images"] == 12
    assert found["spaces"][0]["rows"] == {"avg": 12}


def test_cache_info_of_a_folder_that_is_not_there(featx_command):
    result = featx_command("cache", "info", "--cache", "nowhere")
    assert result.returncode == 0
    assert "nowhere: 0.0 MB" in result.stdout


def test_doctor_says_what_works(featx_command, featx_process, tmp_path):
    result = featx_process("doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "everything needed works" in result.stdout
    assert is_quiet(result)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").write_text("")
    broken = featx_command("doctor", "--cache", "file/cache", "--json")
    assert broken.returncode == 1
    checks = {check["what"]: check["state"] for check in json.loads(broken.stdout)["checks"]}
    assert checks["cache"] == "broken"
    assert checks["backend"] == "ok"


ERRORS = {
    "no such folder": (["extract", "nowhere/photos"], "nowhere/photos"),
    "no such dataset": (["extract", "nowhere"], "unknown folder, file or extracted dataset"),
    "an empty folder": (["extract", "empty"], "empty"),
    "no image": (["train", "texts"], "none with an image extension"),
    "no readable image": (["train", "broken"], "none of the 2 images of 'broken' could be read"),
    "one class only": (["train", "one"], "one class only: 'a' (1 images)"),
    "unknown backbone": (["extract", "one", "-b", "resnet51"], "did you mean 'resnet50'"),
    "unknown layer": (["extract", "one", "--tap", "block_99"], "unknown layer or block of tiny"),
    "unknown head": (["train", "one", "--head", "logistik"], "did you mean 'logistic'"),
    "weights missing": (["extract", "one", "-b", "vgg16"], "--backbone tiny"),
    "no such weights": (["extract", "one", "-b", "vgg16", "--weights", "w.h5"], "is no file"),
    "no such model": (["predict", "m.featx", "x.jpg"], "which is no file"),
    "not our model": (["predict", "broken/a/1.jpg", "x.jpg"], "no model saved by featx"),
    "an unwritable cache": (["extract", "one", "--cache", "file"], "file"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_clear_message_and_exit_1(case, featx_command, tmp_path, draw_photo):
    for folder in ("empty", "texts/a", "broken/a", "broken/b"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "texts" / "a" / "1.txt").write_text("x")
    for name in ("a/1", "b/2"):
        (tmp_path / "broken" / f"{name}.jpg").write_text(f"no image {name}")
    draw_photo(tmp_path, "one/a/1.jpg", seed=0, colour=(1, 2, 3))
    (tmp_path / "file").write_text("")
    args, message = ERRORS[case]
    result = featx_command(*args)
    if case == "an unwritable cache":
        assert result.returncode == 2  # click knows that it is a file
    else:
        assert result.returncode == 1, result.stdout + result.stderr
        assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_debug_shows_the_traceback(featx_process):
    result = featx_process("extract", "nowhere", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_usage_errors_exit_2(featx_process, photos):
    assert featx_process("extract").returncode == 2
    wrong = featx_process("extarct", photos)
    assert wrong.returncode == 2
    assert "Did you mean 'extract'?" in wrong.stderr
    nowhere = featx_process("train", photos, "-o", "no/such/m.featx")
    assert nowhere.returncode == 2
    assert "does not exist" in nowhere.stderr


def test_a_reader_that_goes_away_is_no_error():
    import subprocess
    import sys

    code = "from featx.cli.main import main; main(['backbones'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert "Traceback" not in errors


def test_shell_completion(featx_process):
    result = featx_process(
        _FEATX_COMPLETE="bash_complete", COMP_WORDS="featx extract -b mobilenet_v", COMP_CWORD="3"
    )
    assert "plain,mobilenet_v2" in result.stdout
    script = featx_process(_FEATX_COMPLETE="bash_source")
    assert "complete" in script.stdout


def test_every_option_means_the_same_everywhere():
    seen = {}
    for name in COMMANDS:
        command = cli.get_command(None, name)
        for subcommand in getattr(command, "commands", {name: command}).values():
            for parameter in subcommand.params:
                if parameter.param_type_name == "option":
                    for flag in parameter.opts:
                        seen.setdefault(flag, set()).add(type(parameter.type).__name__)
    assert all(len(kinds) == 1 for kinds in seen.values()), seen


def test_version(featx_process):
    assert featx_process("--version").stdout.strip() == f"featx, version {featx.__version__}"


@pytest.mark.slow
@pytest.mark.realdata
def test_the_placeholder_among_the_photographs_is_named(shared, mobilenet_weights, featx_command):
    result = featx_command(
        "train", shared / "data" / "ants_bees", "-b", "mobilenet_v2", "--weights",
        mobilenet_weights, "-o", "ab.featx",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "of which the first frame is used:\n    ants/imageNotFound.gif" in result.stdout
    accuracy = float(result.stdout.split("accuracy  ")[1].split()[0])
    assert accuracy >= 0.96


@pytest.mark.parametrize(
    ("resize", "draft", "expected"),
    [
        ("stretch", None, None),
        ("stretch", True, {"draft": True}),
        ("stretch", False, {"draft": False}),
        ("crop", None, {"resize": "crop"}),
        ("crop", True, {"resize": "crop", "draft": True}),
    ],
)
def test_options_that_say_nothing_leave_decoding_to_the_backbone(resize, draft, expected):
    from featx.cli.options import _image_policy

    policy = None if expected is None else featx.ImagePolicy(**expected)
    assert _image_policy(resize, draft) == policy


@pytest.mark.parametrize(
    ("words", "status", "out"),
    [
        (["backbones", "--json"], 0, '{"backbones"'),
        (["predict", "none.featx", "x.jpg"], 1, ""),
        (["train"], 2, ""),
    ],
)
def test_the_program_ends_at_once_with_all_of_its_output(run_python, words, status, out):
    code = f"""
import atexit, sys
from featx.cli.main import run
sys.argv = ["featx", *{words!r}]
atexit.register(lambda: print("cleared up"))
run()
print("never")
"""
    done = run_python(code, check=False)
    assert done.returncode == status
    assert done.stdout.startswith(out)
    assert done.stdout.endswith("cleared up\n")
    assert bool(done.stderr) == (status != 0)
