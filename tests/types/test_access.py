"""An annotation says what an argument gives access to."""

from typing import get_args

import pytest

from kleiber.types.access import Access, CodePath, DataPath, OutsidePath


@pytest.mark.parametrize(
    ("annotation", "access"), [(DataPath, Access.READ), (CodePath, Access.RUN), (OutsidePath, Access.WRITE)]
)
def test_a_declaration_is_a_text_with_its_access(annotation, access):
    assert get_args(annotation) == (str, access)
