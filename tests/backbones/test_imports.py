def test_settling_a_backbone_imports_no_numerical_framework(run_python):
    code = (
        "import sys; from featx.backbones.source import resolve_backbone;"
        "source = resolve_backbone('mobilenet_v2', weights='random:0');"
        "print(source.spec().name.startswith('mobilenet_v2-'),"
        " sorted({'keras', 'tensorflow', 'torch', 'jax', 'sklearn'} & set(sys.modules)))"
    )
    assert run_python(code).stdout.strip() == "True []"


def test_settling_efficientnet_with_a_file_imports_no_numerical_framework(run_python, tmp_path):
    path = tmp_path / "own.weights.h5"
    path.write_bytes(b"not read as a network here")
    code = (
        "import sys; from featx.backbones.source import resolve_backbone;"
        f"source = resolve_backbone('efficientnet_b0', weights={str(path)!r});"
        "print(source.preprocessing, sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    assert run_python(code).stdout.strip() == "none []"
