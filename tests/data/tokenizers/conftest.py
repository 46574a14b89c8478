import pytest
from small_run import REPOSITORY

from kleiber.data.sources.text import Text
from kleiber.data.tokenizers.byte_level import BPE, trained


@pytest.fixture(scope="package")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> BPE:
    source = Text(str(REPOSITORY / "tests/data/tiny.txt")).source()
    return trained([source], 400, tmp_path_factory.mktemp("bpe"))
