"""Cells of tables carry the name of their column, for narrow windows."""

from html_elements import elements, shown_text
from pages.narrow import with_labels

PAGE = """<p>before</p><table>
<thead>
<tr>
<th>arm &lt;b&gt;</th>
<th style="text-align: right;">loss</th>
</tr>
</thead>
<tbody>
<tr>
<td><code>a "b"</code></td>
<td style="text-align: right;">-0.5</td>
</tr>
<tr><td>gpt-plain-lr0.01-seed0-4cd00646</td><td></td></tr>
</tbody>
</table><table class="x"><tr><td>1</td></tr></table>"""


def test_cells_have_the_names_of_their_columns_and_the_text_stays():
    page = with_labels(PAGE)
    assert shown_text(page) == shown_text(PAGE)
    cells = [dict(attributes) for tag, attributes in elements(page) if tag == "td"]
    assert [cell.get("data-label") for cell in cells] == ["arm <b>", "loss", "arm <b>", "loss", None]
    assert ["data-number" in cell for cell in cells] == [False, True, False, False, False]
    assert ["data-long" in cell for cell in cells] == [False, False, True, False, False]
    assert cells[1]["style"] == "text-align: right;"
    (first, second) = (dict(attributes) for tag, attributes in elements(page) if tag == "table")
    assert first == {"data-columns": "2"} and second == {"class": "x"}
