"""Convert the bundled backbone to OpenVINO, as it comes with featx.

    python scripts/convert_tiny.py

Writes the network up to its last feature map, compared with Keras, and what it is of. To be run
when the weights change, or when the conversion does.
"""

from __future__ import annotations

from featx.backbones.catalog import BUNDLED
from featx.backbones.source import resolve_backbone
from featx.engines.openvino import OpenVinoEngine, StoredConversion, convert, load_openvino

TAPS = ("avg", "max", "flatten")


def main() -> None:
    openvino, source = load_openvino(), resolve_backbone(BUNDLED)
    model = convert(source, ("avg",)).model
    mean = model.get_results()[0].input_value(0).get_node()
    result = openvino.opset13.result(mean.input_value(0))
    features = openvino.Model([result], model.get_parameters(), BUNDLED)
    stored = StoredConversion.shipped(source, TAPS)
    assert stored is not None
    with stored.writing() as path:
        openvino.save_model(features, path, compress_to_fp16=False)
    engine = OpenVinoEngine(source, TAPS)
    assert not engine.converts
    convert(source, TAPS).check(engine.run)
    print(stored.folder)


if __name__ == "__main__":
    main()
