import inspect
import re

import pytest

from featx import exceptions
from featx.exceptions import FeatxError, MissingExtraError, UnknownNameError

CLASSES = {
    name: value
    for name, value in vars(exceptions).items()
    if inspect.isclass(value) and value.__module__ == exceptions.__name__
}


def drawn_tree():
    """The tree of the module's docstring: name, name of its base, built-in base beside it."""
    found, path = {}, []
    for line in exceptions.__doc__.splitlines():
        match = re.match(r"^    ([│├└─ ]*)(\w+Error)\b(?:.*\(also (\w+)\))?", line)
        if match:
            depth = len(match.group(1)) // 4
            path[depth:] = [match.group(2)]
            found[match.group(2)] = (path[depth - 1] if depth else None, match.group(3))
    return found


def test_every_error_is_public_and_drawn():
    assert set(exceptions.__all__) - {"reason"} == set(CLASSES) == set(drawn_tree())
    assert exceptions.__all__ == sorted(exceptions.__all__)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_bases_are_as_drawn(name):
    base, builtin = drawn_tree()[name]
    expected = {base or "Exception"} | ({builtin} if builtin else set())
    assert {parent.__name__ for parent in CLASSES[name].__bases__} == expected
    assert issubclass(CLASSES[name], FeatxError)


def test_an_unknown_name_suggests_the_nearest_and_lists_what_there_is():
    error = UnknownNameError("head", "Logistics", ["knn", "logistic"], hint="See the table")
    assert str(error) == (
        "unknown head 'Logistics': did you mean 'logistic'? Known: knn, logistic. See the table"
    )
    assert (error.kind, error.name, error.near) == ("head", "Logistics", ("logistic",))


def test_several_near_names_are_all_suggested():
    error = UnknownNameError("tap", "block", ["block1", "block2", "stem"])
    assert "did you mean 'block2' or 'block1'?" in str(error) or (
        "did you mean 'block1' or 'block2'?" in str(error)
    )


def test_a_name_near_nothing_gets_the_list_alone():
    error = UnknownNameError("head", "zzz", ["knn", "logistic"])
    assert str(error) == "unknown head 'zzz'. Known: knn, logistic"
    assert error.near == ()


def test_a_long_list_is_not_printed():
    error = UnknownNameError("layer", "zzz", [f"layer_{n}" for n in range(61)], hint="Look there")
    assert str(error) == "unknown layer 'zzz'. Look there"


def test_a_missing_extra_names_the_command_that_installs_it():
    error = MissingExtraError("optuna", extra="hpo", purpose="the search")
    assert str(error) == (
        "the search needs optuna, which is not installed: pip install 'featx[hpo]'"
    )
    assert (error.package, error.extra) == ("optuna", "hpo")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (KeyError("classes"), "'classes' is missing"),
        (KeyError("Unable to open object (object 'a' does not exist)"), "Unable to open object"),
        (MemoryError(), "MemoryError"),
        (
            ValueError(
                "A Lambda is disallowed by default. If you trust it, pass `safe_mode=False`."
            ),
            "A Lambda is disallowed by default",
        ),
        (TypeError("Please pass `custom_objects=`."), "TypeError"),
        (
            RuntimeError(
                "Exception from src/core.cpp:51:\nCheck 'a' failed at src/x.cpp:3:\nbad node"
            ),
            "bad node",
        ),
        (
            RuntimeError(
                "Graph execution error:\n\nDetected at node a (most recent call last):\nOOM"
            ),
            "Graph execution error: OOM",
        ),
        (
            ValueError(
                "Exception encountered when calling Conv2D.call().\n\n\x1b[1mNo room.\x1b[0m"
            ),
            "No room",
        ),
    ],
)
def test_a_reason_is_the_fact_without_advice_and_places(error, expected):
    assert exceptions.reason(error).strip("\"'").startswith(expected.strip("\"'"))
    assert "safe_mode" not in exceptions.reason(error)


def test_a_reason_is_one_short_line_whatever_came_from_a_file():
    found = exceptions.reason(ValueError("could not convert \x1b[31m\x07\u202e" + "é" * 5000))
    assert found.isprintable()
    assert len(found) <= 200
    assert exceptions.reason(FeatxError("as it is")) == "as it is"
