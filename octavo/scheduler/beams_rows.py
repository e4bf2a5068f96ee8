"""A beam search among rows and pages: each beam is a sequence, and beams of a search share pages as far as they agree.

A turn takes one token of every beam. When all have come back the search chooses, and the next plan makes it so: the
first beam that goes on from another keeps its row and pages; further ones share its full pages, copy the partial last
one, and take a row that a beam left behind. A search that was preempted comes back with its first beam like any
sequence; the others then start from the pages that they have in common with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from octavo.kv import PagePool
from octavo.plan import LogprobArrays
from octavo.request import EngineRequest, Finished, SampleLogprobs, SamplingParams
from octavo.scheduler.beams import BeamSearch, Top, chain, common_length, num_candidates
from octavo.scheduler.collected import Collected
from octavo.scheduler.draft import Chunk, Draft
from octavo.scheduler.rows import Rows
from octavo.scheduler.sequence import Group, Phase, Sequence


@dataclass(frozen=True, slots=True)
class Hands:
    """What a search needs of the scheduler: its tables, and its ways to give a sequence a row and to take it back."""

    rows: Rows
    pool: PagePool
    page_size: int
    start_row: Callable[[Sequence, list[int], int, Draft], None]
    take_chunk: Callable[[Sequence, Draft], None]
    leave_row: Callable[[Sequence], None]


@dataclass(frozen=True, slots=True)
class Move:
    """Put a beam into place: its token, its sequence, and the sequence it goes on from (itself, if it stays)."""

    sequence: Sequence
    parent: Sequence
    token: int


class BeamRun:
    """One request's search.

    Attributes:
        placed: the sequences that carry the beams, in the order of `search.beams`.
    """

    def __init__(self, group: Group, hands: Hands):
        first = group.sequences[0]
        self.group = group
        self.search = BeamSearch(group.request, first.limit - first.num_prompt)
        self.placed: list[Sequence] = [first]
        self._hands = hands
        self._candidates = num_candidates(group.request)
        self._arrived: dict[int, Top] = {}
        self._moves: list[Move] = []
        self._restoring = False  # only the first beam has a row

    @property
    def num_reserved(self) -> int:
        """Rows that it may still take: they are set aside while it runs, so that it need never wait for one."""
        running = sum(sequence.phase is Phase.RUNNING for sequence in self.group.sequences)
        return len(self.group.sequences) - running if running else 0

    # -- planning ------------------------------------------------------------------------------------------------

    def pages_needed(self) -> int:
        """Pages that `place` or `restore` is going to allocate."""
        size = self._hands.page_size
        if self._moves:
            forks = sum(move.sequence is not move.parent for move in self._moves)
            length = int(self._hands.rows.known[self._moves[0].parent.row])
            return len(self._moves) if length % size == 0 else forks
        return self._pages_to_restore() if self._may_restore() else 0

    def pages_to_admit(self) -> int:
        """Pages beyond the first beam's that it will want at once."""
        return self._pages_to_restore() if self._restoring else len(self.group.sequences) - 1

    def place(self, draft: Draft) -> None:
        """Put the beams that were chosen into place and take their tokens; the pages are there."""
        moves, self._moves = self._moves, []
        for move in moves:
            if move.sequence is not move.parent:
                self._fork(move, draft)
        for move in moves:
            if move.sequence is move.parent:
                self._stay(move, draft)

    def restore(self, draft: Draft) -> None:
        """Bring back the other beams once the first one is computed, as far as the budget goes; the pages are there."""
        if self._may_restore():
            self._restoring = False
            for sequence in self.placed[1:]:
                self._restore(sequence, draft)

    def _stay(self, move: Move, draft: Draft) -> None:
        rows, row = self._hands.rows, move.sequence.row
        known = int(rows.known[row])
        rows.tokens[row, known] = move.token
        rows.known[row] = known + 1
        if known == rows.num_pages[row] * self._hands.page_size:
            pages = self._hands.pool.allocate(1)
            draft.add_pages(row, int(rows.append_pages(np.array([row]), pages)[0]), pages)
        draft.add_chunk(Chunk(row, known, known + 1, True))
        rows.computed[row], rows.in_flight[row] = known + 1, 1

    def _fork(self, move: Move, draft: Draft) -> None:
        """Before the parents move on: their rows still hold what both have in common."""
        hands, child, row = self._hands, move.sequence, move.parent.row
        known = int(hands.rows.known[row])
        whole = known // hands.page_size
        held = hands.rows.pages(row)
        hands.pool.share(held[:whole])
        own = hands.pool.allocate(1)
        if known % hands.page_size:
            draft.copies.append((held[whole], own[0]))
        child.tokens = np.append(hands.rows.tokens[row, :known], np.int32(move.token))
        child.digests = move.parent.digests[:whole]
        hands.start_row(child, held[:whole] + own, known, draft)
        hands.take_chunk(child, draft)

    def _may_restore(self) -> bool:
        """The first beam has launched all of its known tokens, so its pages may be read."""
        first, rows = self.placed[0], self._hands.rows
        return (
            self._restoring and first.phase is Phase.RUNNING and bool(rows.computed[first.row] == rows.known[first.row])
        )

    def _pages_to_restore(self) -> int:
        size, first = self._hands.page_size, self.placed[0].tokens
        return sum(
            -(-len(sequence.tokens) // size) - common_length(first, sequence.tokens) // size
            for sequence in self.placed[1:]
        )

    def _restore(self, sequence: Sequence, draft: Draft) -> None:
        hands, first = self._hands, self.placed[0]
        whole = common_length(first.tokens, sequence.tokens) // hands.page_size
        shared = hands.rows.pages(first.row)[:whole]
        hands.pool.share(shared)
        own = hands.pool.allocate(-(-len(sequence.tokens) // hands.page_size) - whole)
        hands.start_row(sequence, shared + own, whole * hands.page_size, draft)
        if draft.budget > 0:
            hands.take_chunk(sequence, draft)

    # -- committing ----------------------------------------------------------------------------------------------

    def arrive(self, sequence: Sequence, logprobs: LogprobArrays, place: int) -> None:
        """A beam's next-token logprobs, at row `place` of a step's."""
        count = self._candidates
        self._arrived[sequence.index] = Top(logprobs.top_ids[place, :count], logprobs.top_logprobs[place, :count])
        self._hands.rows.in_flight[sequence.row] = 0

    @property
    def complete(self) -> bool:
        """Whether every beam's logprobs have arrived."""
        return len(self._arrived) == len(self.placed)

    def advance(self) -> bool:
        """Let the search choose; True if it is over, else rows of beams that nothing goes on from are given up."""
        tops = [self._arrived[sequence.index] for sequence in self.placed]
        self._arrived = {}
        if self.search.advance(tops):
            return True
        parents = [self.placed[beam.parent] for beam in self.search.beams]
        spare = [sequence for sequence in self.group.sequences if sequence not in parents]
        for sequence in spare:
            if sequence.phase is Phase.RUNNING:
                self._hands.leave_row(sequence)
                sequence.phase = Phase.FORKING
        self.placed = []
        for beam, parent in zip(self.search.beams, parents, strict=True):
            sequence = spare.pop(0) if parent in self.placed else parent
            self.placed.append(sequence)
            self._moves.append(Move(sequence, parent, beam.last.token if beam.last is not None else 0))
        return False

    def preempt(self) -> Sequence:
        """Give up every row; the first beam's sequence, which is returned, is to be queued."""
        beams, prompt = self.search.beams, np.asarray(self.group.request.prompt_token_ids, np.int32)
        for sequence in self.group.sequences:
            if sequence.phase is Phase.RUNNING:
                self._hands.leave_row(sequence)
            sequence.phase = Phase.FORKING
        self.placed = self.group.sequences[: len(beams)]
        for sequence, beam in zip(self.placed, beams, strict=True):
            sequence.tokens = np.concatenate([prompt, np.array(beam.tokens, np.int32)])
            sequence.digests = []
        self._arrived, self._moves = {}, []
        self._restoring = len(beams) > 1
        self.placed[0].resumes = True
        return self.placed[0]

    def tell(self, outputs: Collected) -> None:
        """Add the outcome: every token, its logprobs if they are wanted, and the ends; index 0 is the best."""
        handle, hypotheses = self.group.request.handle, self.search.hypotheses
        for index, found in enumerate(hypotheses):
            links = chain(found.last)
            outputs.handles += [handle] * len(links)
            outputs.indices += [index] * len(links)
            outputs.tokens += [link.token for link in links]
            outputs.logprobs += [SampleLogprobs(handle, index, link.entry) for link in links if link.entry is not None]
            end = Finished(handle, index, found.reason, found.stop_reason, cumulative_logprob=found.cumulative_logprob)
            outputs.finished.append(end)
        for index in range(len(hypotheses), len(self.group.sequences)):
            outputs.finished.append(Finished(handle, index, "length"))


class BeamRuns(dict[int, BeamRun]):
    """All searches under way, by handle."""

    def pages_needed(self) -> int:
        """Pages that `plan` is going to allocate."""
        return sum(run.pages_needed() for run in self.values())

    def num_reserved(self) -> int:
        """Rows that are set aside."""
        return sum(run.num_reserved for run in self.values())

    def plan(self, draft: Draft) -> None:
        """One token for every beam that was chosen; then, with what is left, beams that come back."""
        for run in self.values():
            run.place(draft)
        for run in self.values():
            run.restore(draft)

    def arrive(self, sequences: list[Sequence | None], places: list[int], logprobs: LogprobArrays) -> list[BeamRun]:
        """Pass rows of a step's logprobs on; searches with all of a turn's choose. Returns those that are over."""
        touched: dict[int, BeamRun] = {}
        for sequence, place in zip(sequences, places, strict=True):
            if sequence is not None:
                run = touched[sequence.request.handle] = self[sequence.request.handle]
                run.arrive(sequence, logprobs, place)
        return [run for run in touched.values() if run.complete and run.advance()]


def row_params(request: EngineRequest) -> SamplingParams:
    """What a beam's row asks of the sampler: nothing but the logprobs of its candidates."""
    params = request.params
    return msgspec.structs.replace(params, temperature=0.0, min_tokens=0, logprobs=num_candidates(request))
