"""The page that draws where a model comes from: one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from yarn_ops import __version__
from yarn_ops.evals.report.page import table, whole_page
from yarn_ops.registry.lineage import LineageNode, nearest_parents

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 230, 64, 30, 34, 12
"""of a box, the room between two, and around all, in pixels"""
LETTERS = 32
"""that fit in a box's line"""
COLOURS = {
    **dict.fromkeys(("documents", "shards"), "#fff3d6"),
    **dict.fromkeys(("base", "patched", "adapter", "merged"), "#e3eefc"),
    **dict.fromkeys(("release", "fingerprint", "claim"), "#d9f2df"),
    **dict.fromkeys(("pulled", "export"), "#fde4dc"),
}
STYLE = """<style>body{max-width:1240px}td,th{text-align:left!important}code{font-size:10.5px}
svg text{font-size:12px}svg .kind{font-weight:600;font-size:13px}svg .small{fill:#57606a;font-size:11px}
rect{stroke:#8c959f}path{fill:none;stroke:#8c959f;stroke-width:1.3}</style>"""


def page(title: str, run: str, nodes: Sequence[LineageNode]) -> str:
    """The page; nothing in it points outside, or needs a script."""
    told = f"run {escape(run)}; times are UTC; yarn-ops {__version__}"
    head = f"{STYLE}<h1>Lineage of {escape(title)}</h1><p>{told}</p>"
    heads = ("what", "digest", "size", "took", "made", "by run")
    drawing = f'<div class="scroll">{_drawing(nodes)}</div>'
    return whole_page(f"Lineage of {title}", ((head, drawing), table(heads, map(_row, nodes), escaped=True)))


def places(nodes: Sequence[LineageNode]) -> dict[str, tuple[int, int]]:
    """{id: (row, lane)}: a box stands below everything that it was made from, near its parents' lanes."""
    parents = nearest_parents(nodes)
    taken: set[tuple[int, int]] = set()
    found: dict[str, tuple[int, int]] = {}
    for node in nodes:
        above = [found[parent] for parent in parents[node.id]]
        row, lane = max((row + 1 for row, _ in above), default=0), min((lane for _, lane in above), default=0)
        lane = next(free for free in range(lane, lane + len(nodes)) if (row, free) not in taken)
        taken.add((row, lane))
        found[node.id] = (row, lane)
    return found


def _drawing(nodes: Sequence[LineageNode]) -> str:
    at, parents = places(nodes), nearest_parents(nodes)
    corner = {
        name: (MARGIN + lane * (WIDTH + ACROSS), MARGIN + row * (HEIGHT + DOWN))
        for name, (row, lane) in at.items()
    }
    wide = max((x for x, _ in corner.values()), default=0) + WIDTH + MARGIN
    high = max((y for _, y in corner.values()), default=0) + HEIGHT + MARGIN
    drawn = [line for node in nodes for line in _arrows(node, parents[node.id], corner)]
    drawn += [line for node in nodes for line in _box(node, *corner[node.id])]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" role="img" '
        f'viewBox="0 0 {wide} {high}">{"".join(drawn)}</svg>'
    )


def _arrows(node: LineageNode, parents: Sequence[str], corner: dict[str, tuple[int, int]]) -> Iterator[str]:
    x, y = corner[node.id][0] + WIDTH // 2, corner[node.id][1]
    for parent in parents:
        left, top = corner[parent][0] + WIDTH // 2, corner[parent][1] + HEIGHT
        bend = y - DOWN  # straight down its own lane, then over
        yield f'<path d="M{left} {top}V{bend}C{left} {y - 8} {x} {bend + 4} {x} {y - 5}"/>'
        yield f'<path d="M{x - 4} {y - 6}L{x} {y}L{x + 4} {y - 6}z" style="fill:#8c959f"/>'


def _box(node: LineageNode, x: int, y: int) -> Iterator[str]:
    facts = " · ".join(filter(None, (node.digest[:12], *node.size_and_time)))
    told = escape("\n".join(filter(None, (node.name, node.digest, node.uri, node.made, node.run))))
    yield f"<g><title>{told}</title>"
    colour = COLOURS.get(node.kind, "#f0f2f4")
    yield f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{colour}"/>'
    for place, (look, text) in enumerate((("kind", node.kind), ("", node.name), ("small", facts))):
        shown = text if len(text) <= LETTERS + 8 * (look == "small") else f"…{text[1 - LETTERS :]}"
        yield f'<text class="{look}" x="{x + 9}" y="{y + 18 + 17 * place}">{escape(shown)}</text>'
    yield "</g>"


def _row(node: LineageNode) -> tuple[str, ...]:
    what, digest = escape(f"{node.kind} {node.name}"), f"<code>{escape(node.digest)}</code>"
    return (what, digest, *node.size_and_time, node.made, escape(node.run or ""))
