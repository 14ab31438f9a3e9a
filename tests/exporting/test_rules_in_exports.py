"""An export states the rule of its model, and the lines that serve it decide as the model does."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exceptions import ExportError
from featx.exporting.description import serving_code
from featx.heads.decision import Decision, LabelSets
from featx.images.decode import decode_image

COSTS = np.array([[0.0, 1, 1], [6, 0, 1], [1, 9, 0]])
RULES = {
    "plain": Decision(),
    "factors": Decision(False, "factors", np.array([0.2, 1.0, 3.0]), "f1"),
    "costs": Decision(False, "costs", COSTS, "cost"),
    "threshold": Decision(False, "threshold", np.array([0.8]), "f1"),
    "plain of labels": Decision(True),
    "thresholds": Decision(True, "thresholds", np.array([0.7, 0.2, 0.4]), "f1"),
}


def with_sets(rule, *least):
    return Decision(
        rule.multilabel, rule.kind, rule.values, rule.optimised,
        LabelSets(0.9, "all", np.array(least), 50),
    )  # fmt: skip


@pytest.fixture
def ruled(fit):
    model = fit()
    model.decision_ = with_sets(RULES["factors"], 0.3, 0.3, 0.3)
    return model


def test_the_description_carries_the_rule_and_the_output_stays_plain(
    ruled, files, pictures, tmp_path, capsys
):
    done = featx.export(ruled, tmp_path / "m.keras", verify=pictures)
    assert done.verification["top1_changed"] == 0
    assert done.verification["accuracy_of_model"] == ruled.score(
        files, np.repeat(ruled.classes_, 5)
    )
    stated = json.loads((tmp_path / "m.keras.json").read_text("utf-8"))["decision"]
    assert Decision.from_dict(stated, 3, multilabel=False).to_dict() == ruled.decision_.to_dict()
    for file in files[::4]:
        variables = {}
        exec(done.serving["python"].replace("new.jpg", file), variables)
        (proba,) = ruled.predict_proba([file])
        np.testing.assert_allclose(variables["probabilities"], proba, atol=1e-5)
        said, held = capsys.readouterr().out.splitlines()
        assert said.split()[0] == ruled.predict([file])[0]
        assert eval(held) == ruled.classes_[ruled.rule.label_sets(proba[None])[0]].tolist()


def test_a_plain_model_states_no_rule(keras_export, model):
    assert "decision" not in json.loads(keras_export.with_name("m.keras.json").read_text())


def test_another_rule_is_another_model(ruled, pictures, tmp_path):
    path = featx.export(ruled, tmp_path / "m.keras").path
    ruled.decision_ = None
    with pytest.raises(ExportError, match=r"m\.keras\.json states another decision rule than"):
        featx.verify_export(ruled, path, pictures)


@pytest.fixture(scope="module")
def probabilities():
    return np.random.default_rng(0).dirichlet(np.ones(3), 40).astype(np.float32)


def cases():
    for name, rule in RULES.items():
        k = 2 if rule.kind == "threshold" else 3
        yield pytest.param(rule, k, id=name)
        yield pytest.param(with_sets(rule, *[0.3] * k), k, id=f"{name} with sets")


def described(rule, k, folder):
    """A description beside nothing, of which the serving lines are."""
    stated = {} if rule.kind == "plain" and rule.sets is None else {"decision": rule.to_dict()}
    description = {
        "format": "onnx",
        "classes": ["ant", "bee", "fly"][:k],
        "input": {
            "shape": [None, 8, 8, 3],
            "image": {"draft": False, "resize": "stretch", "interpolation": "bilinear"},
        },
        "output": {"multilabel": rule.multilabel},
        **stated,
    }
    (folder / "m.onnx.json").write_text(json.dumps(description))
    return description


def expected(rule, proba, classes):
    """What the lines should say of one image."""
    lines = []
    (answer,) = rule.decide(proba[None])
    names = np.array(classes)
    lines.append(names[answer > 0].tolist() if rule.multilabel else classes[answer])
    if rule.sets is not None:
        lines.append(names[rule.label_sets(proba[None])[0]].tolist())
    return lines


@pytest.mark.parametrize(("rule", "k"), list(cases()))
def test_lines_of_python_decide_as_the_model(rule, k, probabilities, tmp_path, capsys):
    description = described(rule, k, tmp_path)
    code = serving_code(tmp_path / "m.onnx", description)["python"]
    tail = code[code.rindex("\nprobabilities") + 1 :].partition("\n")[2]
    for proba in probabilities:
        proba = proba[:k] / proba[:k].sum()
        exec(tail, {"about": description, "classes": description["classes"], "np": np,
                    "probabilities": proba.copy()})  # fmt: skip
        lines = capsys.readouterr().out.splitlines()
        said = [eval(line) if line.startswith("[") else line.split()[0] for line in lines]
        assert said == expected(rule, proba, description["classes"])


@pytest.mark.parametrize("window", [(100.0, 4000.0), (-2.5, 3.0), "image"])
def test_lines_of_python_have_the_window_of_the_model(window, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = featx.ImagePolicy(draft=False, window=window)
    description = described(RULES["plain"], 2, tmp_path)
    description["input"]["image"] = policy.to_dict()
    code = serving_code(tmp_path / "m.onnx", description)["python"]
    variables = {}
    exec("import numpy as np\nfrom PIL import Image, ImageOps\n", variables)
    exec(code[code.index("def pixels") : code.index("with open(")], variables)
    generator = np.random.default_rng(0)
    deep = generator.integers(0, 5000, (20, 30)).astype(np.uint16)
    for values in (deep, generator.normal(size=(20, 30)).astype(np.float32), deep // 20 * 0 + 7):
        Image.fromarray(values).save("new.tif")
        expected = decode_image((tmp_path / "new.tif").read_bytes(), (8, 8), policy)
        np.testing.assert_array_equal(variables["pixels"]("new.tif")[0], expected)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize(("rule", "k"), list(cases()))
def test_lines_of_javascript_decide_as_the_model(rule, k, probabilities, tmp_path):
    description = described(rule, k, tmp_path)
    code = serving_code(tmp_path / "m.onnx", description)["javascript"]
    tail = code[code.rindex("const probabilities =") :].partition("\n")[2]
    rows = probabilities[:, :k] / probabilities[:, :k].sum(axis=1, keepdims=True)
    script = (
        f"const classes = {json.dumps(description['classes'])};\n"
        f"const decision = {json.dumps(description.get('decision'))};\n"
        "const log = console.log;\n"
        "console.log = (...parts) => log(JSON.stringify(parts[0]));\n"
        f"for (const row of {json.dumps(rows.tolist())}) {{\n"
        f"const probabilities = Float32Array.from(row);\n{tail}}}\n"
    )
    result = subprocess.run(
        ["node", "-e", script], capture_output=True, text=True, check=True, timeout=60
    )
    said = [json.loads(line) for line in result.stdout.splitlines()]
    wanted = [line for row in rows for line in expected(rule, row, description["classes"])]
    assert said == wanted
