"""The answers' tokens as one tree behind a prompt: which log-probabilities to read, and how they add up.

Knows token ids, never text. Three answers of a prompt, with the tokens that stand for them:

    billing            [7]              root --7--> 1 --4--> (leaf)        nodes fed to the network: 1
    billing problem    [7, 4]             \\--9--> (leaf)                   nodes read: the root and 1
    other things       [9]

The root is the prompt's last token. A node is fed to the network only where something is read at it, so answers of
one token cost nothing beside the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """What the network said at a tree's nodes, for N prompts; natural logarithms.

    edges: (N, E) float32, log P(token of edge e | the path to its node). masses: (N, M) float32, log of the summed
    probability of a set of tokens at a node. A row of NaN could not be computed.
    """

    edges: np.ndarray
    masses: np.ndarray


@dataclass(frozen=True, eq=False)
class AnswerTree:
    """A trie of answers.

    tokens, parents: (n,) the token fed at node 1..n and the node before it (0: the root); depths: (n,) from 1.
    edge_nodes, edge_ids: (E,) what is read: the log-probability of an id at a node.
    mass_nodes: (M,), mass_ids: per mass the ids whose probabilities add.
    paths: per answer its edges; ends: per answer the mass that ends it, -1 for none.
    start: the masses and edge paths whose sum is the probability of the text that was taken back from the prompt
    (pairs of edges and mass); empty where nothing was.
    """

    tokens: np.ndarray
    parents: np.ndarray
    depths: np.ndarray
    edge_nodes: np.ndarray
    edge_ids: np.ndarray
    mass_nodes: np.ndarray
    mass_ids: tuple[np.ndarray, ...]
    paths: tuple[Ids, ...]
    ends: Ids
    start: tuple[tuple[Ids, int], ...]
    answers: tuple[Ids, ...]

    @property
    def fed(self) -> int:
        """n, the tokens that stand behind each prompt."""
        return len(self.tokens)

    def chains(self) -> list[list[int]]:
        """Root-to-tip sequences of nodes (1..n) that together visit every node; one empty chain where n = 0."""
        tips = set(range(1, self.fed + 1)) - set(self.parents.tolist())
        return [self._line(tip) for tip in sorted(tips)] or [[]]

    def ancestors(self) -> np.ndarray:
        """(n, n) bool: may node i + 1 see node j + 1? Itself and those on its path."""
        seen = np.zeros((self.fed, self.fed), dtype=bool)
        for node in range(1, self.fed + 1):
            seen[node - 1, [step - 1 for step in self._line(node)]] = True
        return seen

    def _line(self, node: int) -> list[int]:
        line = []
        while node:
            line.append(node)
            node = int(self.parents[node - 1])
        return line[::-1]

    def log_probs(self, reading: Reading) -> np.ndarray:
        """(N, A) float32: log P(answer | prompt) of every answer, in the order they were given."""
        total = np.stack(
            [
                reading.edges[:, list(path)].sum(axis=1, dtype=np.float64)
                + (reading.masses[:, end].astype(np.float64) if end >= 0 else 0.0)
                for path, end in zip(self.paths, self.ends, strict=True)
            ],
            axis=1,
        )
        return (total - self._start_mass(reading)).astype(np.float32)

    def _start_mass(self, reading: Reading) -> np.ndarray | float:
        """(N, 1) log of the probability that the text taken back from the prompt comes at all."""
        if not self.start:
            return 0.0
        parts = [
            reading.edges[:, list(path)].sum(axis=1, dtype=np.float64) + reading.masses[:, mass].astype(np.float64)
            for path, mass in self.start
        ]
        return np.logaddexp.reduce(np.stack(parts, axis=1), axis=1, keepdims=True)


def build_tree(
    answers: Sequence[Ids],
    *,
    end_ids: np.ndarray | None = None,
    taken_back: Sequence[tuple[Ids, np.ndarray]] = (),
) -> AnswerTree:
    """The tree of answers, each a path of one or more token ids.

    end_ids: (K,) the tokens that may end an answer; None: an answer's mass includes every continuation. Where an
    answer is the beginning of another, the token that leads on to the other does not end it, so that the masses of
    different answers never overlap.
    taken_back: what the start text's probability is the sum of: (path, ids) pairs, the mass of `ids` after `path`.
    Refuses an empty path.
    """
    if not all(answers):
        nameless = list(map(len, answers)).index(0)
        raise ValueError(
            f"Answer {nameless} has no tokens, expected one at least. Give it a text that encodes to some."
        )
    paths = list(dict.fromkeys(answers))
    read_at = {path[:depth] for path in paths for depth in range(len(path))}
    ends_at = {path for path in paths} if end_ids is not None else set()
    starts_at = {path for path, _ in taken_back}
    fed = _closed(read_at | ends_at | starts_at)
    number = {(): 0} | {path: at for at, path in enumerate(sorted(fed - {()}, key=lambda p: (len(p), p)), start=1)}
    edges: dict[Ids, int] = {}
    for path in (*paths, *starts_at):
        for depth in range(1, len(path) + 1):
            edges.setdefault(path[:depth], len(edges))
    masses: list[tuple[int, np.ndarray]] = []
    end_of: dict[Ids, int] = {}
    for path in paths:
        if end_ids is not None:
            leads_on = [edge[-1] for edge in edges if edge[:-1] == path]
            end_of[path] = len(masses)
            masses.append((number[path], np.setdiff1d(end_ids, leads_on)))
    start = []
    for path, ids in taken_back:
        start.append((_edges_of(path, edges), len(masses)))
        masses.append((number[path], np.asarray(ids, dtype=np.int64)))
    nodes = [path for path in number if path]
    return AnswerTree(
        tokens=np.array([path[-1] for path in nodes], dtype=np.int64),
        parents=np.array([number[path[:-1]] for path in nodes], dtype=np.int64),
        depths=np.array([len(path) for path in nodes], dtype=np.int64),
        edge_nodes=np.array([number[path[:-1]] for path in edges], dtype=np.int64),
        edge_ids=np.array([path[-1] for path in edges], dtype=np.int64),
        mass_nodes=np.array([node for node, _ in masses], dtype=np.int64),
        mass_ids=tuple(ids for _, ids in masses),
        paths=tuple(_edges_of(path, edges) for path in answers),
        ends=tuple(end_of.get(path, -1) for path in answers),
        start=tuple(start),
        answers=tuple(answers),
    )


def _closed(paths: set[Ids]) -> set[Ids]:
    """The paths and all their beginnings."""
    return {path[:depth] for path in paths for depth in range(len(path) + 1)}


def _edges_of(path: Ids, edges: dict[Ids, int]) -> Ids:
    return tuple(edges[path[:depth]] for depth in range(1, len(path) + 1))


def distinct_answers(answers: Sequence[Ids], *, ended: bool) -> list[int]:
    """Positions of the answers whose masses do not overlap: repeats go, and without an end those that another begins.

    " Yes" holds the mass of " Yes, sure" already; with an end (`ended`) the two are told apart.
    """
    first = {path: at for at, path in reversed(list(enumerate(answers)))}
    if ended:
        return sorted(first.values())
    return sorted(at for path, at in first.items() if not any(path[:depth] in first for depth in range(1, len(path))))
