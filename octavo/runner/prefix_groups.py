"""Which rows of a step share leading pages, and whether reading those once pays.

Rows are kept in a radix tree over their page numbers, updated as tables are written: a row's own tail is a leaf, and
growing it changes nothing else. Rows below a node have the same pages down to the node's depth::

    root -- [7 8 9] --+-- row 0: 20 21
                      +-- row 4: 33
                      '-- [10 11] --+-- row 2: 40
                                    '-- row 3: (ends here)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from octavo.plan import Int32Array, StepPlan


@dataclass(frozen=True, slots=True)
class SharingCost:
    """What sharing costs, in the bytes that could be read in one layer in the same time, and what a key has.

    The constants are for an H100 (3 TB/s; `benchmarks/gpu_shared_prefix.py` measures them as `no_groups` less
    `apart`).

    Attributes:
        token_bytes: keys and values of one token in one layer.
        member_bytes: the softmax's state of one row, written and read in float32: heads x head size x 8.
        group_bytes: a group's query tiles begin and end: a microsecond or two of a few multiprocessors.
        step_bytes: the further kernel of a layer: 8 microseconds.
    """

    token_bytes: int
    member_bytes: int
    group_bytes: int = 1 << 20
    step_bytes: int = 24 << 20

    @classmethod
    def of(cls, num_kv_heads: int, group: int, head_dim: int, element_bytes: int) -> SharingCost:
        """That of a model's attention; `element_bytes` is a cached element's size."""
        return cls(num_kv_heads * head_dim * 2 * element_bytes, num_kv_heads * group * head_dim * 8)

    def saved(self, members: int, tokens: int) -> int:
        """Net bytes of one layer that a group saves."""
        return (members - 1) * tokens * self.token_bytes - members * self.member_bytes - self.group_bytes


@dataclass(frozen=True, slots=True)
class Grouping:
    """The groups of a step.

    Attributes:
        members: places in `StepPlan.rows`, group after group.
        counts, lengths: [G]; members and shared keys of each group, the keys a multiple of the kernels' tile.
        saved_bytes: of one layer's reads, net.
    """

    members: Int32Array
    counts: Int32Array
    lengths: Int32Array
    saved_bytes: int


@dataclass(eq=False, slots=True)
class _Node:
    """Pages that two or more rows share, behind those of its parent."""

    id: int
    parent: _Node | None
    depth: int
    pages: Int32Array
    children: dict[int, _Node | int] = field(default_factory=dict)  # by their first page; an int is a row
    ended: set[int] = field(default_factory=set)  # rows that have no page behind this node's


class PrefixGroups:
    """The rows' block tables on the host, and the groups that they form.

    `update` costs time in proportion to what a plan changes; `group` costs nothing while neither the sharing nor the
    step's rows change, else time in proportion to the rows.

    Args:
        max_rows, max_blocks: of the tables.
        page_size: tokens of a page.
        tile: shared lengths are cut to multiples of it.
    """

    def __init__(self, max_rows: int, max_blocks: int, page_size: int, tile: int, cost: SharingCost):
        self._page_size, self._tile, self._cost = page_size, tile, cost
        self._table = np.zeros((max_rows, max_blocks), np.int32)
        self._lengths = np.zeros(max_rows, np.int64)  # in pages
        self._node_of = np.zeros(max_rows, np.int64)  # id of the deepest node above each row; 0 is the root
        self._root = _Node(0, None, 0, np.empty(0, np.int32))
        self._nodes: dict[int, _Node] = {0: self._root}
        self._free_ids: list[int] = []
        self._version = 0  # of the nodes, and of which rows are below them
        self._known: tuple[int, Int32Array, Grouping | None] | None = None

    # -- the tree --------------------------------------------------------------------------------------------------

    def update(self, plan: StepPlan) -> None:
        """Take in a plan's freed rows and its writes to the tables. Every plan must pass here, in order."""
        for row in plan.free_rows.tolist():
            self._remove(row)
        at = 0
        runs = zip(plan.block_rows.tolist(), plan.block_starts.tolist(), plan.block_counts.tolist(), strict=True)
        for row, start, count in runs:
            self._write(row, start, plan.block_pages[at : at + count])
            at += count

    def _write(self, row: int, start: int, pages: Int32Array) -> None:
        """Pages [start, start + len) of a row, which are then its last.

        A row that was written to by a step that failed, so that pages are missing, is in no group until it starts anew.
        """
        length, node = int(self._lengths[row]), self._nodes[int(self._node_of[row])]
        if start > length:
            self._remove(row)
            return
        stop = start + len(pages)
        if 0 < start == length and row not in node.ended:
            self._table[row, start:stop] = pages
            self._lengths[row] = stop
            return
        self._remove(row)
        self._table[row, start:stop] = pages
        self._lengths[row] = stop
        self._insert(row)

    def _insert(self, row: int) -> None:
        pages, node, depth = self._table[row, : self._lengths[row]], self._root, 0
        while depth < len(pages):
            child = node.children.get(first := int(pages[depth]))
            if child is None:
                node.children[first] = row
                break
            edge = self._edge(child, depth)
            common = _common(edge, pages[depth:])
            if isinstance(child, int) or common < len(edge):
                child = self._split(node, child, edge, common)
            node, depth = child, depth + common
        else:
            if len(pages):
                node.ended.add(row)
        self._node_of[row] = node.id
        self._version += node is not self._root

    def _edge(self, child: _Node | int, depth: int) -> Int32Array:
        return child.pages if isinstance(child, _Node) else self._table[child, depth : self._lengths[child]]

    def _split(self, node: _Node, child: _Node | int, edge: Int32Array, common: int) -> _Node:
        """A new node between `node` and `child`, after `common` pages of the edge."""
        new = _Node(self._new_id(), node, node.depth + common, edge[:common].copy())
        self._nodes[new.id] = new
        node.children[int(edge[0])] = new
        if isinstance(child, _Node):
            child.parent, child.pages = new, edge[common:].copy()
        else:
            self._node_of[child] = new.id
        if common < len(edge):
            new.children[int(edge[common])] = child
        elif isinstance(child, int):
            new.ended.add(child)
        return new

    def _new_id(self) -> int:
        return self._free_ids.pop() if self._free_ids else len(self._nodes)

    def _remove(self, row: int) -> None:
        if not self._lengths[row]:
            return
        node = self._nodes[int(self._node_of[row])]
        if row in node.ended:
            node.ended.remove(row)
        else:
            del node.children[int(self._table[row, node.depth])]
        self._lengths[row], self._node_of[row] = 0, 0
        self._version += node is not self._root
        if node.parent is not None and len(node.children) + len(node.ended) == 1:
            self._dissolve(node, node.parent)

    def _dissolve(self, node: _Node, parent: _Node) -> None:
        """What is left below a node that is shared no more goes to its parent."""
        last = next(iter([*node.children.values(), *node.ended]))
        parent.children[int(node.pages[0])] = last
        if isinstance(last, _Node):
            last.parent, last.pages = parent, np.concatenate([node.pages, last.pages])
        else:
            self._node_of[last] = parent.id
        del self._nodes[node.id]
        self._free_ids.append(node.id)

    # -- groups ----------------------------------------------------------------------------------------------------

    def group(self, rows: Int32Array, context_lens: Int32Array) -> Grouping | None:
        """The groups of rows of one query each, or None where sharing does not pay.

        The same object is returned as long as nothing changes. Of nested groups those are taken that save most, each
        row being in one at most.

        Args:
            rows, context_lens: [R]; a group shares no more keys than each member's context has.
        """
        if self._known is not None and self._known[0] == self._version and np.array_equal(self._known[1], rows):
            return self._known[2]
        found = self._find(rows, context_lens) if len(self._nodes) > 1 else None
        self._known = self._version, rows.copy(), found
        return found

    def _find(self, rows: Int32Array, context_lens: Int32Array) -> Grouping | None:
        node_of = self._node_of[rows]
        chosen = self._choose(np.bincount(node_of, minlength=max(self._nodes) + 1))
        group_of = chosen[node_of]
        order = np.argsort(group_of, kind="stable").astype(np.int32)
        order = order[np.searchsorted(group_of[order], 1) :]  # 0 is none
        if not len(order):
            return None
        ids, starts, counts = np.unique(group_of[order], return_index=True, return_counts=True)
        depths = np.array([self._nodes[i].depth for i in ids.tolist()])
        lengths = np.minimum(depths * self._page_size, np.minimum.reduceat(context_lens[order], starts))
        lengths -= lengths % self._tile
        saved = [self._cost.saved(n, length) for n, length in zip(counts.tolist(), lengths.tolist(), strict=True)]
        total = sum(saved) - self._cost.step_bytes
        if total <= 0 or min(lengths) == 0:
            return None
        return Grouping(order, counts.astype(np.int32), lengths.astype(np.int32), total)

    def _choose(self, own: np.ndarray) -> np.ndarray:
        """int [ids]: for the rows right below each node the id of the node whose group they join, or 0.

        Args:
            own: rows of the step right below each node.
        """
        nodes = sorted(self._nodes.values(), key=lambda node: -node.depth)[:-1]  # children before parents; no root
        members, below = own.tolist(), [0] * len(own)
        alone = [0] * len(own)  # what a node saves as a group
        for node in nodes:
            i, parent = node.id, node.parent.id if node.parent is not None else 0
            tokens = node.depth * self._page_size // self._tile * self._tile
            alone[i] = max(0, self._cost.saved(members[i], tokens))
            members[parent] += members[i]
            below[parent] += max(alone[i], below[i])
        chosen = np.zeros(len(own), np.int64)
        for node in reversed(nodes):
            above = chosen[node.parent.id] if node.parent is not None else 0
            chosen[node.id] = above or (node.id if alone[node.id] > 0 and alone[node.id] >= below[node.id] else 0)
        return chosen


def _common(one: Int32Array, other: Int32Array) -> int:
    """Length of the longest common beginning."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
