"""A run's report as PDF, from the same comparison.json, layers.csv and figures as report.html."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from fpdf import FPDF
from fpdf.fonts import FontFace

from compression.reporting import report

if TYPE_CHECKING:
    from collections.abc import Sequence

FONT = "DejaVu"  # comes with matplotlib, and has arrows and the multiplication sign, unlike PDF's own fonts
FONT_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
MAX_COLUMNS = 7  # of layers.csv; more do not fit the width of the page


def write_pdf(folder: Path, figures: Path, output: Path) -> Path:
    """Write the report of the run whose comparison.json and layers.csv are in `folder`, and return `output`.

    `figures` is the folder of its figures as PNG.
    """
    content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    pdf = FPDF(format="A4")
    pdf.set_margin(18)  # millimetres
    pdf.add_font(FONT, "", FONT_FOLDER / "DejaVuSans.ttf")
    pdf.add_font(FONT, "B", FONT_FOLDER / "DejaVuSans-Bold.ttf")
    pdf.add_page()
    _add_heading(pdf, content["title"], 16)
    _add_paragraph(pdf, f"{content['model']} · {content['source']} · run {content['run']}")
    for warning in content["warnings"]:
        _add_paragraph(pdf, warning)
    _add_table(pdf, _comparison_rows(content), (44, 20, 20, 16))
    _add_figures(pdf, figures)
    _add_layers(pdf, folder / "layers.csv")
    _add_heading(pdf, "Repeat it", 12)
    _add_paragraph(pdf, content["command"])
    pdf.output(str(output))
    return output


def _comparison_rows(content: dict[str, Any]) -> list[list[str]]:
    columns = ["label", "before", "after", "change"]
    return [["", *columns[1:]]] + [[str(row[column]) for column in columns] for row in report.comparison_rows(content)]


def _add_heading(pdf: FPDF, text: str, size: int) -> None:
    pdf.set_font(FONT, "B", size)
    # Millimetres from points of 0.353 mm: a line is 1.7 times as high as its letters' size.
    pdf.multi_cell(0, size * 0.6, text, new_x="LMARGIN", new_y="NEXT")
    pdf.ln(2)


def _add_paragraph(pdf: FPDF, text: str) -> None:
    pdf.set_font(FONT, "", 9)
    pdf.multi_cell(0, 5, text, new_x="LMARGIN", new_y="NEXT")
    pdf.ln(2)


def _add_table(pdf: FPDF, rows: Sequence[Sequence[str]], widths: tuple[int, ...] = (), size: int = 9) -> None:
    """Add a table whose first row is the header; `widths` are relative, `size` is the font's in points."""
    pdf.set_font(FONT, "", size)
    style = FontFace(emphasis="BOLD")
    with pdf.table(
        col_widths=widths or None, headings_style=style, borders_layout="HORIZONTAL_LINES", line_height=size * 0.55
    ) as table:
        for row in rows:
            table.row(row)
    pdf.ln(4)


def _add_figures(pdf: FPDF, folder: Path) -> None:
    for path in sorted(folder.glob("*.png"), key=report.figure_order):
        pdf.image(str(path), w=pdf.epw * 0.8, alt_text=path.stem)
        pdf.ln(3)


def _add_layers(pdf: FPDF, path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [report.merge_before_after(row) for row in csv.DictReader(file)]
    if rows:
        _add_heading(pdf, "Layer by layer", 12)
        columns = list(rows[0])[:MAX_COLUMNS]
        _add_table(pdf, [columns, *([str(row.get(column, "")) for column in columns] for row in rows)], size=6)
