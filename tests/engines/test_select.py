import logging

import pytest

from featx.engines import engine as engine_module
from featx.engines.engine import ENGINES, Engine, make_engine
from featx.exceptions import EngineError, UnknownNameError


@pytest.mark.parametrize("name", ["auto", "keras"])
def test_an_engine_is_made_by_name(name, source, pixels):
    assert name in ENGINES
    engine: Engine = make_engine(name, source, ("avg",), batch_size=3)
    assert (engine.taps, engine.batch_size) == (("avg",), 3)
    assert engine.run(pixels(2))["avg"].shape == (2, 6)
    assert engine.provenance()["engine"] == engine.name


def test_without_a_batch_size_the_engine_chooses(source):
    assert make_engine("keras", source, ("avg",)).batch_size == 32


def test_asking_again_does_not_build_again(source):
    first = make_engine("keras", source, ("avg",))
    assert make_engine("keras", source, ("avg",)) is first
    assert make_engine("keras", source, ("max",)) is not first


def test_an_unknown_engine_is_answered_with_the_nearest(source):
    with pytest.raises(UnknownNameError, match="unknown engine 'kears': did you mean 'keras'"):
        make_engine("kears", source, ("avg",))


@pytest.mark.parametrize(
    ("backend", "level"), [(None, "WARNING"), ("tensorflow", "WARNING"), ("jax", "DEBUG")]
)
def test_keras_steps_in_for_openvino(backend, level, source, monkeypatch, caplog):
    def refuse(*_args):
        raise EngineError("it does not convert")

    monkeypatch.setattr(engine_module, "_openvino", refuse)
    monkeypatch.setattr(engine_module, "_has_gpu", lambda: False)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if backend:
        monkeypatch.setenv("KERAS_BACKEND", backend)
    with caplog.at_level(logging.DEBUG, "featx"):
        assert make_engine("auto", source, ("avg",), batch_size=5).name == "keras"
    (record,) = [one for one in caplog.records if "Keras steps in" in one.message]
    assert record.levelname == level
    assert "it does not convert" in record.message
    engine_module._built.cache_clear()
