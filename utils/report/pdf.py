"""A report as a PDF, drawn by matplotlib: the same sections, on A4 pages."""

import io
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.image
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from utils.files import write_atomically
from utils.report.blocks import Block, Cell, Missing, Number, Picture, Section, Table, Text

WIDTH, HEIGHT, MARGIN = 8.27, 11.69, 0.7  # inches
BODY, SMALL, TINY = 10, 8, 6.5  # points
LINE = 1.35  # heights of a letter from line to line
LETTER, BOLD = 0.5, 0.58  # of its height is a letter's width, on average
MONO = 0.602  # the same in DejaVu Sans Mono
FEWEST_LETTERS = 12  # of a column, however many others there are


def write_pdf(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """All sections; a table too wide for its page wraps in its cells."""

    def write(file: object) -> None:
        with PdfPages(file, metadata={"Title": title, "CreationDate": None}) as pdf:  # type: ignore[arg-type]  # takes files too
            pages = _Pages(pdf)
            pages.lines(title, 18, bold=True)
            pages.lines(subtitle, SMALL)
            for section in sections:
                pages.space(0.25)
                pages.lines(section.title, 14, bold=True, keep=_first_height(section.blocks))
                for block in section.blocks:
                    pages.block(block)
            pages.end()

    write_atomically(path, write)


class _Pages:
    """Text and pictures, put one below the other, on as many pages as they need."""

    def __init__(self, pdf: PdfPages):
        self.pdf = pdf
        self.begin()

    def begin(self) -> None:
        self.figure, self.left = Figure(figsize=(WIDTH, HEIGHT)), HEIGHT - 2 * MARGIN

    def end(self) -> None:
        self.pdf.savefig(self.figure)

    def need(self, inches: float) -> None:
        """A new page if this one has less left."""
        if inches > self.left:
            self.end()
            self.begin()

    def space(self, inches: float) -> None:
        self.left -= inches

    def block(self, block: Block) -> None:
        match block:
            case Text():
                self.lines(f"{block.lead} {block.text}".strip(), BODY)
            case Missing():
                self.lines(f"{block.what} Run: {block.command}", BODY)
            case Picture():
                self.picture(block)
            case Table():
                self.table(block)
        self.space(0.1)

    def lines(self, text: str, size: float, bold: bool = False, mono: bool = False, keep: float = 0) -> None:
        """Wrapped text; `keep` inches beside it must fit on the page too."""
        letters = int((WIDTH - 2 * MARGIN) * 72 / (size * (BOLD if bold else LETTER)))
        wrapped = [text] if mono else textwrap.wrap(text, letters) or [""]
        self.need(keep)
        for line in wrapped:
            height = size * LINE / 72
            self.need(height)
            y = (MARGIN + self.left) / HEIGHT
            weight, family = ("bold" if bold else "normal"), ("monospace" if mono else "sans-serif")
            line = line.replace("$", r"\$")  # or matplotlib reads formulas
            self.figure.text(MARGIN / WIDTH, y, line, size=size, weight=weight, family=family, va="top")
            self.left -= height

    def picture(self, picture: Picture) -> None:
        pixels = matplotlib.image.imread(io.BytesIO(picture.png))
        across, down = _size(*picture.size)
        self.need(down + 0.4)
        bottom = (MARGIN + self.left - down) / HEIGHT
        ax = self.figure.add_axes((MARGIN / WIDTH, bottom, across / WIDTH, down / HEIGHT))
        ax.imshow(pixels, aspect="auto")
        ax.set_axis_off()
        self.left -= down + 0.08
        self.lines(f"{picture.alt}. From {picture.run}", SMALL)

    def table(self, table: Table) -> None:
        """Columns as wide as they need, or as the page has room for, in letters of one width."""
        self.lines(table.caption, SMALL, bold=True, keep=0.8)
        for lines in table_lines(table, int((WIDTH - 2 * MARGIN) * 72 / (TINY * MONO))):
            self.need(len(lines) * TINY * LINE / 72)
            for line in lines:
                self.lines(line, TINY, mono=True)
            self.space(0.03)
        if table.runs:
            self.lines(f"From {', '.join(table.runs)}", TINY)


def table_lines(table: Table, letters: int) -> Iterator[list[str]]:
    """The lines of the heads and of each row, of at most `letters` letters where the columns can be that narrow."""
    texts = [list(table.columns), *([_text(cell) for cell in row] for row in table.rows)]
    widths = _widths(texts, letters)
    for row in texts:
        cells = [textwrap.wrap(text, width) or [""] for text, width in zip(row, widths, strict=True)]
        yield list(_side_by_side(cells, widths))


def _first_height(blocks: Sequence[Block]) -> float:
    """Inches that a heading and the first block under it take, or enough of that block to be worth a start."""
    if blocks and isinstance(blocks[0], Picture):
        return 0.9 + _size(*blocks[0].size)[1]
    return 1.5


def _size(width: int, height: int) -> tuple[float, float]:
    """Inches of a figure of so many pixels, saved at 150 an inch: its own size, or what fits on a page."""
    across = min(WIDTH - 2 * MARGIN, width / 150)
    down = across * height / width
    limit = HEIGHT - 2 * MARGIN - 1
    return (across, down) if down <= limit else (across * limit / down, limit)


def _widths(texts: Sequence[Sequence[str]], letters: int) -> list[int]:
    """Letters for each column: what it needs, less for the widest ones until all fit."""
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    room = letters - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > FEWEST_LETTERS:
        widths[widths.index(max(widths))] -= 1
    return [max(1, width) for width in widths]


def _side_by_side(cells: Sequence[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    for n in range(max(map(len, cells))):
        pieces = [(cell[n] if n < len(cell) else "").ljust(width) for cell, width in zip(cells, widths, strict=True)]
        yield "  ".join(pieces).rstrip()


def _text(cell: Cell) -> str:
    return cell.text if isinstance(cell, Number) else cell
