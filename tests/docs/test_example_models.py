"""The conversations of `make models`: a question for each documented definition, answered by its first sentence."""

import runpy

from small_run import REPOSITORY

SOURCE = '''
class Store:
    """A place in which things are kept, as in `other.py`. More about it."""

    def put(self, thing):
        """
        Puts a thing into
        the store

        thing  anything
        """

    def _hidden(self):
        """Nobody outside should ask about this."""


def short():
    """Too short."""
'''


def test_public_definitions_are_asked_for_and_answered_by_the_first_sentence_of_their_docstring(tmp_path):
    questions = runpy.run_path(str(REPOSITORY / "examples/models/questions.py"))
    (tmp_path / "shop.py").write_text(SOURCE)
    store, put = questions["conversations"](tmp_path / "shop.py")
    assert "shop.Store" in store["prompt"] and store["response"] == "A place in which things are kept, as in other.py."
    assert "shop.Store.put" in put["prompt"] and put["response"] == "Puts a thing into the store."
    (tmp_path / "broken.py").write_text("def :")
    assert questions["conversations"](tmp_path / "broken.py") == []
