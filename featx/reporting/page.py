"""HTML files that need nothing else: one set of templates, and the one place that writes them.

A page is a template of `featx/reporting/templates` that extends ``base.html``. Every value is
escaped. A content security policy forbids the page every request and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featx.exceptions import MissingExtraError
from featx.files.outputs import as_target, begins_with, check_output, written_whole
from featx.terminal import visible

_START = "<!doctype html>\n<!-- A page made by featx"
_TEMPLATES = Path(__file__).parent / "templates"

is_page = begins_with(_START)
"""Tell whether a file is a page that featx made."""


def write_page(
    target: str | os.PathLike[str],
    template: str,
    *,
    scripts: Sequence[str] = (),
    overwrite: bool = False,
    **values: Any,
) -> None:
    """Write a page, whole or not at all.

    Parameters
    ----------
    target : path
        Where the page goes, also the address of an object; a page of featx there is replaced.
    template : str
        Name of a template that extends ``base.html``, such as ``"report.html"``.
    scripts : sequence of str
        The JavaScript of the page, each the text of a script; others do not run.
    overwrite : bool, default False
        Whether to replace a file that featx did not make.
    **values
        What the template shows: text is escaped, and characters that cannot be seen are shown.

    Raises
    ------
    MissingExtraError
        Where jinja2 is not installed.
    OutputError
        If the file cannot be written, or would replace one that featx did not make.
    """
    path = as_target(target)
    check_output(path, is_page, "page", force=overwrite)
    text = render_page(template, scripts=scripts, **values)
    with written_whole(path) as unfinished:
        unfinished.write_text(text, "utf-8")


def render_page(template: str, *, scripts: Sequence[str] = (), **values: Any) -> str:
    """Return a page as text; the arguments are those of `write_page`."""
    from_jinja = _environment()
    page: str = from_jinja.get_template(template).render(
        start=_markup(_START),
        policy=_policy(scripts),
        scripts=[_markup(script) for script in scripts],
        version=version("featx"),
        **values,
    )
    return page


def script_file(name: str) -> str:
    """Return the text of a script of the templates."""
    return (_TEMPLATES / name).read_text("utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Return a content security policy: no request, and no script but these."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed or repr('none')}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", extra="report", purpose="writing a page") from error
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_seen,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # In the order that they are in: Bokeh defines a thing before it refers to it.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    return environment


def _seen(value: object) -> object:
    """Return text with an escape for each character that cannot be seen or written."""
    return visible(value) if type(value) is str else value


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
