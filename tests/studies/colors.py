"""The colors of categories in the dictionary of a chart."""


def colors(node: object) -> dict[str, str]:
    """The color of each category of the nominal color scales in a chart, however deep they lie."""
    if isinstance(node, list):
        return {name: color for value in node for name, color in colors(value).items()}
    if not isinstance(node, dict):
        return {}
    scale = (node.get("color") or {}).get("scale") if isinstance(node.get("color"), dict) else None
    here = dict(zip(scale["domain"], scale["range"], strict=True)) if scale and "range" in scale else {}
    return here | colors(list(node.values()))
