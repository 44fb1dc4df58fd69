"""Parts of an SVG chart: errors or shares against calls of the network, panel beside panel.

A chart brings its own background, for light and for dark pages.  A panel is HEIGHT by WIDTH, its
upper left corner at (LEFT, TOP); places are pixels from the panel's origin.
"""

COLOURS = ("#2a7de1", "#e0701b", "#2ca05a", "#c2428f", "#8a63d2", "#a88410", "#d0433b", "#1b9aa0")
WIDTH, HEIGHT, LEFT, TOP, LEGEND = 300, 230, 52, 34, 146
STYLE = """
  .page { fill: #ffffff } text { fill: #24292f; font: 11px sans-serif }
  .title { font-weight: bold; font-size: 12px } .grid { stroke: #d0d7de; stroke-width: 0.6 }
  .rest { stroke: #8c959f; stroke-width: 0.7; opacity: 0.55; fill: none }
  .line { stroke-width: 1.9; fill: none } .floor { stroke: #8c959f; stroke-dasharray: 1 3 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } text { fill: #d1d7e0 } .grid { stroke: #30363d }
  }
"""
REST = 'class="rest"'  # of a line that is not coloured


def document(title: str, size: tuple[int, int], body: list[str], note: str, defs: str = "") -> str:
    """The whole file; note: below the panels, defs: an element that others refer to."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" '
        f'width="{size[0]}" height="{size[1]}" role="img">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n"
        + (f"<defs>{defs}</defs>\n" if defs else "")
        + f'<rect class="page" width="{size[0]}" height="{size[1]}"/>\n'
        + "\n".join(body)
        + f'\n<text x="{LEFT}" y="{size[1] - 10}">{note}</text>\n</svg>\n'
    )


def panel(right: int, down: int, body: str) -> str:
    """A panel with its origin moved."""
    return f'<g transform="translate({right} {down})">\n{body}\n</g>'


def heading(text: str) -> str:
    """Above a panel."""
    return f'<text class="title" x="{LEFT}" y="{TOP - 12}">{text}</text>'


def axis() -> str:
    """What the numbers under a panel are."""
    middle, under = LEFT + WIDTH / 2, TOP + HEIGHT + 31
    return f'<text x="{middle}" y="{under}" text-anchor="middle">calls of the network</text>'


def column(x: float, said: object) -> list[str]:
    """A vertical line of the grid, and its number."""
    return [
        f'<path class="grid" d="M{x:.1f} {TOP}v{HEIGHT}"/>',
        f'<text x="{x:.1f}" y="{TOP + HEIGHT + 15}" text-anchor="middle">{said}</text>',
    ]


def level(y: float, said: str) -> list[str]:
    """A horizontal line of the grid, and its number."""
    return [
        f'<path class="grid" d="M{LEFT} {y:.1f}h{WIDTH}"/>',
        f'<text x="{LEFT - 6}" y="{y:.1f}" dy="4" text-anchor="end">{said}</text>',
    ]


def coloured(colour: str) -> str:
    """The style of a line in a colour."""
    return f'class="line" stroke="{colour}"'


def key(right: int, row: int, colour: str, said: str) -> list[str]:
    """A row of the legend."""
    down = TOP + 10 + 16 * row
    return [
        f'<path {coloured(colour)} d="M{right} {down - 4}h16"/>',
        f'<text x="{right + 21}" y="{down}">{said}</text>',
    ]
