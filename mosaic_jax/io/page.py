"""A self-contained HTML page: its style, light and dark, its frame, its texts, pictures and tables."""

import base64
import html
from collections.abc import Iterable, Sequence

from mosaic_jax.plain_text import plain

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1d2430; --soft: #667085; --rule: #e3e7ee; --box: #f7f8fa;
  --accent: #2f6fde; --on: #ffffff; --c0: #2f6fde; --c1: #d9622b; --c2: #1f9d68; --c3: #a04bc9; --c4: #b8860b; --c5: #c93b5b; }
@media (prefers-color-scheme: dark) { :root { --page: #12161d; --ink: #e6e9ef; --soft: #98a2b3; --rule: #2b323d; --box: #1a2029;
  --accent: #6ea8fe; --on: #0b1220; --c0: #6ea8fe; --c1: #ff9d6c; --c2: #5fd3a0; --c3: #d09bf0; --c4: #e3bd5b; --c5: #ff8fa6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { font-size: 25px; margin: 0; } h2 { font-size: 18px; margin: 36px 0 10px; }
p { margin: 4px 0; } .soft { color: var(--soft); } code { font-size: 13px; }
.note { border-left: 4px solid var(--c4); background: var(--box); padding: 8px 12px; margin: 14px 0; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 18px; align-items: start;
  margin-bottom: 18px; }
figure { margin: 0; padding: 12px 14px; background: var(--box); border: 1px solid var(--rule); border-radius: 8px;
  overflow-x: auto; }
figcaption { font-weight: 600; margin-bottom: 6px; }
.legend span { margin-right: 14px; font-size: 13px; } .legend i { display: inline-block; width: 16px; height: 3px;
  margin-right: 5px; vertical-align: middle; }
svg { display: block; width: 100%; height: auto; } svg text { font-size: 11.5px; fill: var(--soft); }
svg text.on { fill: var(--on); } svg text.off { fill: var(--ink); }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); } .cell { fill: var(--accent); }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
table { border-collapse: collapse; } th, td { padding: 4px 14px 4px 0; text-align: left; border-bottom: 1px solid var(--rule); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } tr.total td { font-weight: 600; }
.bar { width: 220px; } .bar i { display: block; height: 9px; border-radius: 3px; background: var(--accent); }
.scroll { overflow-x: auto; } tr.changed td:first-child { font-weight: 600; }
img { display: block; max-width: 100%; border-radius: 4px; }
summary { cursor: pointer; margin: 8px 0; color: var(--soft); }
""" + "\n".join(
    f".c{i} {{ stroke: var(--c{i}); }} circle.c{i} {{ fill: var(--c{i}); stroke: none; }} i.c{i} {{ background: var(--c{i}); }}"
    for i in range(6)
)


# What a browser may do for a page, whatever came into it: no script, nothing from elsewhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def escape(text: str) -> str:
    """A text as HTML shows it, in an element or in a quoted attribute."""
    return html.escape(plain(text))


def picture(png: bytes, alt: str, style: str = "") -> str:
    """An <img> that holds the picture; png: what a PNG file holds."""
    styled = f' style="{style}"' if style else ""
    return f'<img alt="{escape(alt)}"{styled} src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def page(title: str, sections: Iterable[str]) -> str:
    """A whole HTML document of the sections that are not empty."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{chr(10).join(filter(None, sections))}\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], total: bool = False) -> str:
    """A table of texts, the first column to the left and the others to the right; `total` sets the last row apart."""

    def line(tag: str, cells: Sequence[str], kind: str = "") -> str:
        inner = "".join(f"<{tag}{' class=n' if place else ''}>{escape(cell)}</{tag}>" for place, cell in enumerate(cells))
        return f"<tr{kind}>{inner}</tr>"

    rows = list(rows)
    last = len(rows) - 1
    body = "".join(line("td", row, " class=total" if total and place == last else "") for place, row in enumerate(rows))
    return f'<div class="scroll"><table>{line("th", head)}{body}</table></div>'


def fold(summary: str, inner: str) -> str:
    """What shows only after a click."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"
