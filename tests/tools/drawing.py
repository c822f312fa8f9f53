"""The house as a picture, drawn from its imports."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from syntax import ROOT, circles, imports, modules, tree_of

WIDTH, MARGIN, GAP, PAD = 1000, 20, 14, 14
HEAD, LINE, LETTER = 34, 17, 7.0  # heights, and the mean width of a letter of 13 px
BETWEEN = 210  # strategies and clients, where messages pass
COLOURS = {  # fill and edge, by day and by night
    "simulations": ("#fef3c7", "#b45309", "#3b2a0a", "#f59e0b"),
    "strategies": ("#dbeafe", "#1d4ed8", "#12254d", "#60a5fa"),
    "clients": ("#dcfce7", "#15803d", "#0f2e1c", "#4ade80"),
    "fedpers": ("#f1f5f9", "#475569", "#1e293b", "#94a3b8"),
}
ROLES = {
    "simulations": "many clients on one machine, and what is done with runs",
    "strategies": "the server",
    "clients": "the nodes",
    "fedpers": "the core: knows neither server nor client",
}


class Box(NamedTuple):
    """A room, or the files that lie beside the rooms of a row."""

    title: str
    text: str


Floor = list[list[Box]]
"""The rows of a package, the highest first."""


def house() -> dict[str, Floor]:
    """The rows of each package: who stands above imports from below. Files that lie beside the
    rooms, row after row, are drawn as one."""
    return {package: floor_of(package, imports()) for package in COLOURS}


def floor_of(package: str, graph: Mapping[str, Mapping[str, int]]) -> Floor:
    """The rows of one package."""
    own = [name for name in graph if name.startswith(f"{package}.")]
    inside = {name: [other for other in graph[name] if other in own] for name in own}
    files, places = levels_of(inside), {name: place_of(name) for name in own}
    between = {place: list[str]() for place in places.values()}
    highest = dict.fromkeys(between, 0)
    for name, others in inside.items():
        place = places[name]
        between[place] += [places[other] for other in others if places[other] != place]
        highest[place] = max(highest[place], files[name])
    # Rooms that import each other's files are ordered by their highest file.
    circle = {one for members in circles(lined(between)) for one in members}
    tops = {
        place: (level, highest[place] if place in circle else 0)
        for place, level in levels_of(between).items()
    }
    rows: Floor = []
    waiting: list[str] = []
    for level in sorted(set(tops.values()), reverse=True):
        found = sorted(place for place, top in tops.items() if top == level)
        rooms = [place for place in found if "." in place]
        if rooms and waiting:
            rows.append([Box("", " · ".join(waiting))])
            waiting = []
        waiting += [place for place in found if "." not in place]
        if rooms:
            row = [Box(room.partition(".")[2], summary_of(room)) for room in rooms]
            rows.append([*row, *([Box("", " · ".join(waiting))] if waiting else [])])
            waiting = []
    return [*rows, *([[Box("", " · ".join(waiting))]] if waiting else [])]


def place_of(name: str) -> str:
    """Where a module is: ``package.room``, or ``file`` where it lies beside the rooms."""
    parts = modules()[name].relative_to(ROOT).parts
    return f"{parts[0]}.{parts[1]}" if len(parts) > 2 else parts[1].removesuffix(".py")


def levels_of(graph: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How many steps each stands above what imports nothing; all of a circle on one level."""
    together = {one: tuple(circle) for circle in circles(lined(graph)) for one in circle}
    known: dict[tuple[str, ...], int] = {}

    def level(one: str) -> int:
        members = together.get(one, (one,))
        if members not in known:
            below = {other for member in members for other in graph[member]} - set(members)
            known[members] = 1 + max(map(level, below), default=-1)
        return known[members]

    return {one: level(one) for one in graph}


def lined(graph: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """A graph as ``syntax.circles`` takes it."""
    return {one: dict.fromkeys(others, 0) for one, others in graph.items()}


def summary_of(room: str) -> str:
    """The first sentence of a room's docstring, without its name."""
    text = ast.get_docstring(tree_of(modules()[room])) or ""
    line = text.splitlines()[0].partition(". ")[0].rstrip(".")
    name, _, rest = line.partition(": ")
    return rest if name.lower().replace(" ", "") == room.partition(".")[2] else line


def draw() -> str:
    """The picture, as SVG."""
    floors, parts = house(), list[str]()
    y = MARGIN
    half = (WIDTH - 2 * MARGIN - BETWEEN) // 2
    top = package(parts, "simulations", floors["simulations"], MARGIN, y, WIDTH - 2 * MARGIN)
    y += top + GAP
    sides = {"strategies": MARGIN, "clients": WIDTH - MARGIN - half}
    tall = max(height_of(floors[name], half) for name in sides)
    for name, x in sides.items():
        package(parts, name, floors[name], x, y, half, tall)
    messages(parts, MARGIN + half, WIDTH - MARGIN - half, y + tall // 2)
    y += tall + GAP
    y += package(parts, "fedpers", floors["fedpers"], MARGIN, y, WIDTH - 2 * MARGIN) + 26
    note = "Drawn from the imports: what stands above imports from below; no two files each other."
    parts.append(f'<text x="{MARGIN}" y="{y}" class="small">{note}</text>')
    return "\n".join([*opening(y + MARGIN), *parts, "</svg>", ""])


def opening(height: int) -> list[str]:
    """The head of the file, with its colours by day and by night."""
    day = [f".{n}{{fill:{c[0]};stroke:{c[1]}}}" for n, c in COLOURS.items()]
    night = [f".{n}{{fill:{c[2]};stroke:{c[3]}}}" for n, c in COLOURS.items()]
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13">',
        "<title>fedpers: the house</title>",
        "<style>",
        "text{fill:#0f172a}.small{fill:#475569}.page{fill:#ffffff}.box{fill:#ffffff}",
        ".box{stroke-opacity:.5}.line{stroke:#475569;fill:none}.tip{fill:#475569}",
        *day,
        ".box{fill:#ffffff}",
        "@media (prefers-color-scheme: dark){",
        "text{fill:#e2e8f0}.small{fill:#94a3b8}.page{fill:#0b1120}",
        ".line{stroke:#94a3b8}.tip{fill:#94a3b8}",
        *night,
        ".box{fill:#0b1120}",
        "}",
        "</style>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path class="tip" d="M0 0L10 5L0 10z"/></marker></defs>',
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
    ]


def wrapped(box: Box, width: float) -> list[str]:
    """A box's text in lines that fit."""
    return textwrap.wrap(box.text, int((width - 2 * PAD) / LETTER), break_long_words=False)


def widths(row: Sequence[Box], width: int) -> list[float]:
    """Of a row's boxes; files that lie beside rooms take what their names take."""
    room = (width - 2 * PAD - GAP * (len(row) - 1)) / len(row)
    return [room] * len(row)


def row_height(row: Sequence[Box], width: int) -> int:
    """As its highest box."""
    lines = [
        len(wrapped(box, w)) + bool(box.title)
        for box, w in zip(row, widths(row, width), strict=True)
    ]
    return LINE * max(lines) + PAD


def height_of(floor: Floor, width: int) -> int:
    """Of a package with all its rows."""
    return HEAD + sum(row_height(row, width) + GAP for row in floor)


def package(
    parts: list[str], name: str, floor: Floor, x: int, y: int, width: int, tall: int | None = None
) -> int:
    """Draw one package; its height."""
    height = tall or height_of(floor, width)
    parts.append(
        f'<rect class="{name}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
        f'<text x="{x + PAD}" y="{y + 23}" font-size="16"><tspan font-weight="bold">{name}</tspan>'
        f'<tspan class="small" font-size="13" dx="8">{escape(ROLES[name])}</tspan></text>'
    )
    top = y + HEAD
    for row in floor:
        left, deep = float(x + PAD), row_height(row, width)
        for box, wide in zip(row, widths(row, width), strict=True):
            draw_box(parts, name, box, (left, top, wide, deep))
            left += wide + GAP
        top += deep + GAP
    return height


def draw_box(
    parts: list[str], package: str, box: Box, place: tuple[float, float, float, float]
) -> None:
    """Draw a room, or a row's files."""
    x, y, width, height = place
    shape = f'x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="5"'
    dashed = "" if box.title else ' stroke-dasharray="3 3"'
    parts.append(f'<rect class="{package} box" {shape}{dashed}/>')
    lines = [f'<tspan font-weight="bold">{box.title}/</tspan>'] if box.title else []
    lines += [f'<tspan class="small">{escape(line)}</tspan>' for line in wrapped(box, width)]
    for k, line in enumerate(lines):
        parts.append(f'<text x="{x + PAD:.0f}" y="{y + 19 + LINE * k:.0f}">{line}</text>')


def messages(parts: list[str], left: int, right: int, y: int) -> None:
    """What passes between server and nodes: they do not import each other."""
    for dy, start, end, above, below in (
        (-34, left, right, "messages: mixtures", "parts: body, head, ..."),
        (34, right, left, "answers: updates, reports", "through a channel"),
    ):
        away = 6 if start < end else -6
        parts.append(
            f'<line class="line" x1="{start + away}" y1="{y + dy}" x2="{end - away}" y2="{y + dy}" '
            'stroke-width="2" marker-end="url(#tip)"/>'
        )
        middle = (left + right) // 2
        for text, at, kind in ((above, dy - 8, "word"), (below, dy + 18, "small")):
            centred = f'x="{middle}" y="{y + at}" text-anchor="middle"'
            parts.append(f'<text class="{kind}" {centred}>{text}</text>')
