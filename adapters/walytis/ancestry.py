"""Which of some blocks are ancestors of others among them: upstream's `remove_ancestors`, answered from heights.

A block's height is one more than its highest parent's, so an ancestor is always lower: the search below a block
stops at the lowest height among the blocks in question. Pure functions over two look-ups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

ParentsOf = Callable[[bytes], Sequence[bytes] | None]
"""Keys of a block's parents; None for an unknown block."""
HeightOf = Callable[[bytes], int | None]
"""Height of a block; None when it, or any ancestor of it, is unknown."""


def indices_without_ancestors(keys: Sequence[bytes], parents_of: ParentsOf, height_of: HeightOf) -> list[int]:
    """Positions of those blocks that are not an ancestor of any other given one, in the order given.

    A block given twice stays twice, as upstream has it. Unknown parents count as having no ancestors.
    """
    asked = set(keys)
    dead: set[bytes] = set()
    lowest = min((height_of(key) or 0 for key in asked), default=0)
    seen: set[bytes] = set()
    front = list(asked)
    while front:
        for parent in parents_of(front.pop()) or ():
            if parent in asked:
                dead.add(parent)
            if parent in seen:
                continue
            seen.add(parent)
            height = height_of(parent)
            if height is None or height > lowest:
                front.append(parent)
    return [position for position, key in enumerate(keys) if key not in dead]


def height_of_block(
    key: bytes, parents_of: ParentsOf, known: Callable[[bytes], int | None], remember: Callable[[bytes, int], None]
) -> int | None:
    """Compute the height of a block from those of its ancestors, without recursion.

    Args:
        key: the block.
        parents_of: look-up of parents.
        known: heights that were computed before; None for others.
        remember: called for each height that is found.
    Returns:
        None when the block or any ancestor of it is unknown.
    """
    incomplete: set[bytes] = set()
    stack = [key]
    while stack:
        top = stack[-1]
        if top in incomplete or known(top) is not None:
            stack.pop()
            continue
        parents = parents_of(top)
        if parents is None or any(parent in incomplete for parent in parents):
            incomplete.add(top)
            stack.pop()
            continue
        waiting = [parent for parent in parents if known(parent) is None]
        if waiting:
            stack += waiting
        else:
            remember(top, max(((known(parent) or 0) + 1 for parent in parents), default=0))
            stack.pop()
    return known(key)
