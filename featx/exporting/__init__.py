"""Models as files that other programs run: Keras, SavedModel, LiteRT, ONNX, OpenVINO."""
