"""Errors of the system in one line, with the file and what helps."""

import errno
import os

import pytest

from kleiber.config.system_errors import ADVICE, describe, naming


@pytest.mark.parametrize("number", ADVICE)
def test_an_error_of_the_system_names_the_file_the_reason_and_the_fix(tmp_path, number):
    path = tmp_path / "model.safetensors"
    with pytest.raises(OSError) as caught, naming(path):
        raise OSError(number, os.strerror(number))
    text = describe(caught.value)
    assert text is not None and str(path) in text and ADVICE[number] in text and "\n" not in text
    assert os.strerror(number).lower() in text


def test_both_names_of_a_rename_are_told_and_names_that_are_there_stay():
    with pytest.raises(OSError) as caught, naming("other"):  # type: ignore[arg-type]
        raise OSError(errno.EIO, "Input/output error", "a", None, "b")
    assert "a -> b" in str(describe(caught.value))


@pytest.mark.parametrize("error", [ValueError("x"), FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("x")])
def test_other_errors_keep_their_traceback(error, tmp_path):
    with pytest.raises(type(error)) as caught, naming(tmp_path):
        raise error
    assert describe(caught.value) is None
