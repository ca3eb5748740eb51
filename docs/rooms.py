"""Draws `rooms.svg`, the rooms of tltrain and what they import, from the code: `python docs/rooms.py`."""

import ast
import collections
import html
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tltrain"
# a room imports only itself and rooms below it; files beside the rooms are verbs, but for the ground
ROOMS = "verbs checks exports experiment pages cache training weights models data runtime ground".split()
GROUND = ("config", "conflicts", "rules", "places", "hub", "hub_download", "formats", "errors", "__init__")
BESIDE = {
    "verbs": "Flags, one call, and what is printed.",
    "ground": "Keys, what they may be, paths, errors.",
}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
WIDTH, LEFT, ROW, BOX = 950, 730, 56, 48  # pixels: of the drawing, of the boxes, from row to row, of a row
STYLE = """text { font: 12px sans-serif; fill: #333 } .name { font-weight: bold; font-size: 14px }
rect { fill: #f4f6f8; stroke: #9ab } path { fill: none; stroke: #47a; opacity: .45 } svg { background: #fff }"""


def room_of(module: str) -> str:
    """The room of a file, named as in `FILES`."""
    room = module.partition(".")[0]
    return room if room in ROOMS else "ground" if module in GROUND else "verbs"


def imports_of(module: str) -> Iterator[str]:
    """Files of tltrain, named as in `FILES`, and packages that a file imports, wherever in it that is."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        for name in names:
            full = f"{node.module}.{name}" if isinstance(node, ast.ImportFrom) else name
            ours = full.removeprefix("tltrain.")
            if full.partition(".")[0] == "tltrain":
                yield ours if ours in FILES else ours.rpartition(".")[0] or "__init__"
            else:
                yield full.partition(".")[0]


def drawing() -> str:
    """The SVG: a row a room, and an arc from each to those it imports, as wide as there are imports."""
    counts = collections.Counter(
        (room_of(module), room_of(name)) for module in FILES for name in set(imports_of(module)) if name in FILES
    )
    parts = [f"<style>{STYLE}</style>"]
    for i, room in enumerate(ROOMS):
        files = [name.rpartition(".")[2] for name in FILES if room_of(name) == room and name not in (room, "__init__")]
        shown = " ".join(files if len(" ".join(files)) < 95 else [*files[:9], f"... {len(files)} files"])
        about = BESIDE.get(room) or ast.get_docstring(ast.parse(FILES[room].read_text())).partition("\n")[0]
        y = 10 + i * ROW
        parts.append(f'<rect x="10" y="{y}" width="{LEFT - 10}" height="{BOX}" rx="4"/>')
        parts.append(f'<text class="name" x="20" y="{y + 20}">{room}</text>')
        parts.append(f'<text x="110" y="{y + 20}">{html.escape(about.replace("`", ""))}</text>')
        parts.append(f'<text x="20" y="{y + 40}">{shown}</text>')
    for (above, below), count in sorted(counts.items()):
        if above != below:
            a, b = (10 + ROOMS.index(room) * ROW for room in (above, below))
            reach = LEFT + 25 + (b - a) * 0.4
            ends = f"M{LEFT} {a + 30} C{reach:.0f} {a + 30} {reach:.0f} {b + 20} {LEFT} {b + 20}"
            title = f"<title>{above} imports {below}, {count} times</title>"
            parts.append(f'<path d="{ends}" stroke-width="{0.5 + count / 4:.1f}">{title}</path>')
    box = f"0 0 {WIDTH} {20 + len(ROOMS) * ROW}"
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">', *parts, "</svg>\n"])


if __name__ == "__main__":
    (Path(__file__).parent / "rooms.svg").write_text(drawing())
