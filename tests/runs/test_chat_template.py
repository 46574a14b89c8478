"""A chat template gives its text, and one that errs, loops or grows without end is named and ends in time."""

import time
from pathlib import Path

import jinja2.sandbox
import pytest

from kleiber.runs import chat_template
from kleiber.runs.chat_template import render

FOLDER = Path("models/stranger")
GROWING = "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
NESTED = "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}"


def template(source: str):
    """A function that compiles and renders, as transformers does in one call."""
    return lambda: jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(source).render()


def test_the_text_of_a_template_is_returned():
    assert render(template("{% for i in range(3) %}é{{ i }}\n{% endfor %}"), FOLDER) == "é0\né1\né2\n"
    assert render(lambda: "\x1b\udcff", FOLDER) == "\x1b\udcff"


@pytest.mark.parametrize(
    ("source", "reason"),
    [("{{ raise_exception('no system turn') }}", "undefined"), ("{{ 1 / 0 }}", "division"), (NESTED, "recursion"),
     ("{{ ''.__class__.__mro__ }}", ""), (GROWING, "MiB"), ("{{ 'x' * 10**10 }}", "MiB")],
)  # fmt: skip
def test_a_template_that_errs_or_grows_is_named(source, reason):
    with pytest.raises(ValueError, match=rf"models/stranger.*{reason}"):
        render(template(source), FOLDER)


@pytest.mark.slow
def test_a_template_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 1)
    began = time.process_time()
    with pytest.raises(ValueError, match="1 s"):
        render(template(ENDLESS), FOLDER)
    assert time.process_time() - began < 1, "it runs in another process"
