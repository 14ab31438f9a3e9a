import pytest

from featx.engines.protocol import Engine
from featx.engines.select import ENGINES, make_engine
from featx.exceptions import UnknownNameError


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
