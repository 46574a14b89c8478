"""Rows with labels, and the texts that a sample made of them contains."""

from kleiber.data.labelled import LabelledRows


def reviews(count: int = 40) -> list[dict]:
    return [{"text": f"{i} " + "ab" * (i % 9), "label": i % 2} for i in range(count)]


def row_texts(rows: LabelledRows, i: int, begin: int = 256, eos: int = 256) -> list[str]:
    """The texts of a row, without what stands around them."""
    ids = rows.row(i).tolist()
    assert ids[0] == begin and ids[-1] == eos
    pieces, piece = [], []
    for token in ids[1:]:
        if token == eos:
            pieces.append(bytes(piece).decode("utf-8", "replace"))
            piece = []
        else:
            piece.append(token)
    return pieces
