"""What an audit writes is what `featx dataset relabel|remove --from` reads."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import featx
from featx.auditing.findings import KINDS, SEVERITIES, Audit, AuditedImage, Finding, read_decisions
from featx.exceptions import DatasetError, UnknownNameError

NAMES = [" a b.jpg", 'x"y,z;\n.jpg', "[1]*.jpg", os.fsdecode(b"\xff.jpg"), "e.jpg", "f.jpg"]


@pytest.fixture
def audited(tmp_path):
    """Six rows of two classes whose paths are awkward, and an audit of them."""
    X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    cache = tmp_path / "cache"
    featx.import_features("odd", X, y=["a", "b"] * 3, paths=NAMES, cache=cache)
    images = [
        AuditedImage(0, NAMES[0], "a", "", "relabel", "b"),
        AuditedImage(1, NAMES[1], "b", "", "remove"),
        AuditedImage(2, NAMES[2], "a", "", "remove"),
        AuditedImage(3, NAMES[3], "b", "", "relabel", "a"),
        AuditedImage(4, NAMES[4], "a"),
    ]
    audit = Audit("odd", 6, [Finding("label", "why", tuple(images), score=0.5)])
    audit.write_csv(tmp_path / "audit.csv")
    return audit


def test_the_table_of_an_audit_is_applied_as_it_is(audited, featx_command):
    assert (
        "2 relabelled" in featx_command("dataset", "relabel", "odd", "--from", "audit.csv").stdout
    )
    assert "2 removed" in featx_command("dataset", "remove", "odd", "--from", "audit.csv").stdout
    again = featx_command("dataset", "remove", "odd", "--from", "audit.csv")
    assert again.returncode == 1
    assert "none of the 2 images of 'audit.csv' with the action remove is in 'odd'" in again.stderr
    show = json.loads(featx_command("dataset", "show", "odd", "--json").stdout)
    assert show["classes"] == {"a": 2, "b": 2}
    assert featx_command("dataset", "undo", "odd").returncode == 0
    assert json.loads(featx_command("dataset", "show", "odd", "--json").stdout)["rows"] == 6


def test_lines_that_a_person_took_out_or_changed_are_done_so(audited, featx_command, tmp_path):
    table = (tmp_path / "audit.csv").read_bytes().decode("utf-8", "surrogateescape")
    changed = table.replace('"relabel"," a b.jpg","a","b"', '"relabel"," a b.jpg","a","c"')
    assert changed != table
    lines = [line for line in changed.split("\n1,") if "\udcff" not in line]
    (tmp_path / "kept.csv").write_text("\n1,".join(lines) + "\n", encoding="utf-8")
    refused = featx_command("dataset", "relabel", "odd", "--from", "kept.csv")
    assert (refused.returncode, "--new-class" in refused.stderr) == (1, True)
    done = featx_command("dataset", "relabel", "odd", "--from", "kept.csv", "--new-class")
    assert "1 relabelled" in done.stdout
    assert "new classes: c" in done.stdout


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("path,label\na.jpg,b\n", DatasetError, "table of `featx audit --csv` .*'action'"),
        ("path,action\na.jpg,relabel\n", DatasetError, "column 'new_label'"),
        ("path,action,new_label\na.jpg,delete,\n", UnknownNameError, "unknown action 'delete'"),
        ("path,action,new_label\na.jpg,relabel,\n", DatasetError, "line 2: expected a class"),
        (
            "path,action,new_label\na.jpg,relabel,b\na.jpg,relabel,c\n",
            DatasetError,
            "lines 2 and 3: 'a.jpg' gets two labels, 'b' and 'c'",
        ),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(tmp_path, text, error, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(error, match=message):
        read_decisions(tmp_path / "t.csv", "relabel")


def test_a_spreadsheet_may_write_the_table_again(tmp_path):
    (tmp_path / "t.csv").write_text(
        "\ufeffkind;action;path;new_label\nx;Relabel;a.jpg;b\nx;;b.jpg;\n"
    )
    assert read_decisions(tmp_path / "t.csv", "relabel") == {"a.jpg": "b"}


def test_kinds_are_in_the_order_of_their_severity():
    order = [SEVERITIES.index(kind.severity) for kind in KINDS.values()]
    assert order == sorted(order)
