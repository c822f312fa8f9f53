"""What clients seal together, as a method's needs have it."""

from __future__ import annotations

from fedpers.channels.base import Method
from fedpers.channels.sealed.sealed_parts import Group
from fedpers.parts import Layout

UNIT = "unit"  # the rows of the slot that is compared, each of length 1


def groups_of(method: Method) -> list[Group]:
    """All in one, or slot by slot where slots are mixed apart."""
    needs, slots = method.needed, tuple(method.layouts)
    if needs.compares:
        return [*(Group((slot,)) for slot in slots), Group((UNIT,), unit=True)]
    return [Group((*slots, *needs.derived))]


def layouts_of(method: Method) -> dict[str, Layout]:
    """Names and shapes of all parts in them."""
    layouts = {**method.layouts, **method.derived_layouts()}
    if compared := method.needed.compares:
        shapes = dict(method.layouts[compared].shapes)
        layouts[UNIT] = Layout((("rows", shapes[f"{compared}.weight"]),))
    return {name: layouts[name] for group in groups_of(method) for name in group.names}
