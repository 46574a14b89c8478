"""Finds the marks of a chart in its specification."""


def marks(node, kind):
    """The layers of a chart with this mark, however deep they lie."""
    if isinstance(node, dict):
        mark = node.get("mark")
        here = [node] if (mark.get("type") if isinstance(mark, dict) else mark) == kind else []
        return here + [layer for value in node.values() for layer in marks(value, kind)]
    return [layer for value in node for layer in marks(value, kind)] if isinstance(node, list) else []
