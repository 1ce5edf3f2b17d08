"""A run's report on paper: report.pdf from the same comparison.json, layers.csv and figures as report.html."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import matplotlib
from fpdf import FPDF
from fpdf.fonts import FontFace

from compression.reporting import report

FONT = "DejaVu"  # comes with matplotlib, and has the arrows and the multiplication sign
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
COLUMNS = 7  # of layers.csv; more do not fit the page


def write(folder: Path, figures: Path, output: Path) -> Path:
    """Write the report of the run whose comparison.json and layers.csv lie in `folder`."""
    content = json.loads((folder / "comparison.json").read_text())
    page = FPDF(format="A4")
    page.set_margin(18)
    page.add_font(FONT, "", FONTS / "DejaVuSans.ttf")
    page.add_font(FONT, "B", FONTS / "DejaVuSans-Bold.ttf")
    page.add_page()
    _heading(page, content["title"], 16)
    _line(page, f"{content['model']} · {content['source']} · run {content['run']}")
    for sentence in content["warnings"]:
        _line(page, sentence)
    _table(page, _comparison(content), (44, 20, 20, 16))
    _pictures(page, figures)
    _layers(page, folder / "layers.csv")
    _heading(page, "Repeat it", 12)
    _line(page, content["command"])
    page.output(str(output))
    return output


def _comparison(content: dict[str, Any]) -> list[list[str]]:
    named = ["label", "before", "after", "change"]
    return [["", "before", "after", "change"]] + [
        [str(row[n]) for n in named] for row in report.comparison_rows(content)
    ]


def _heading(page: FPDF, text: str, size: int) -> None:
    page.set_font(FONT, "B", size)
    page.multi_cell(0, size * 0.6, text, new_x="LMARGIN", new_y="NEXT")
    page.ln(2)


def _line(page: FPDF, text: str) -> None:
    page.set_font(FONT, "", 9)
    page.multi_cell(0, 5, text, new_x="LMARGIN", new_y="NEXT")
    page.ln(2)


def _table(page: FPDF, rows: list[list[str]], widths: tuple[int, ...] = (), size: int = 9) -> None:
    page.set_font(FONT, "", size)
    style = FontFace(emphasis="BOLD")
    with page.table(
        col_widths=widths or None, headings_style=style, borders_layout="HORIZONTAL_LINES", line_height=size * 0.55
    ) as table:
        for row in rows:
            table.row(row)
    page.ln(4)


def _pictures(page: FPDF, folder: Path) -> None:
    for path in sorted(folder.glob("*.png"), key=report.figure_order):
        page.image(str(path), w=page.epw * 0.8, alt_text=path.stem)
        page.ln(3)


def _layers(page: FPDF, path: Path) -> None:
    with path.open(newline="") as file:
        rows = [report.merge_before_after(row) for row in csv.DictReader(file)]
    if rows:
        _heading(page, "Layer by layer", 12)
        names = list(rows[0])[:COLUMNS]
        _table(page, [names, *([str(row.get(name, "")) for name in names] for row in rows)], size=6)
