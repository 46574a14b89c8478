"""Charts as SVG and PNG."""

from __future__ import annotations

import re

from altair.utils._importers import vl_version_for_vl_convert

from kleiber.charts.theme import Chart

# The widths of labels are those of Arial, which Liberation Sans has too.
FONTS = 'font-family="Arial, Liberation Sans, Helvetica, sans-serif"'
# What a screen reader would read out of an SVG; one that is shown as a picture has the text of its page.
READ_OUT = re.compile(' (?:role|aria-[a-z]+)="[^"]*"')
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def to_svg(chart: Chart) -> str:
    """Returns a chart as SVG, as altair writes it but for what is read out, which is up to half of the bytes.

    Characters that XML does not have become a replacement character. The library that draws ends the process for such
    a character, which a label of a stranger's run may have.
    """
    import vl_convert

    plain = _as_xml(chart.to_dict())
    assert isinstance(plain, dict)
    svg = vl_convert.vegalite_to_svg(plain, vl_version=vl_version_for_vl_convert())
    return READ_OUT.sub("", svg).replace('font-family="sans-serif"', FONTS)


def _as_xml(value: object) -> object:
    if isinstance(value, str):
        return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {_as_xml(key): _as_xml(child) for key, child in value.items()}
    return [_as_xml(child) for child in value] if isinstance(value, list) else value


def svg_to_png(svg: str) -> bytes:
    """Returns a chart that `to_svg` converted as PNG, as altair writes it with scale_factor=2."""
    import vl_convert

    return vl_convert.svg_to_png(svg, scale=2, ppi=72)
