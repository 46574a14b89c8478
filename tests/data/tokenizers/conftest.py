import pytest
from small_run import REPOSITORY

from kleiber.data.sources.text import Text
from kleiber.data.tokenizers.byte_level import BPE, train_bpe


@pytest.fixture(scope="package")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> BPE:
    source = Text(str(REPOSITORY / "tests/data/tiny.txt")).source()
    return train_bpe([source], 400, tmp_path_factory.mktemp("bpe"))
