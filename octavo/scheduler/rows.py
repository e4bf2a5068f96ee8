"""The rows of running sequences as arrays, so that a steady decode step costs the same few operations at any size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.plan import BoolArray, Int32Array
from octavo.scheduler.sequence import Sequence

_STOP_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Cohort:
    """Rows that decode together, and whose they are. While nothing changes it serves one step after the other.

    Attributes:
        members: [max_num_seqs], which rows; `rows`: the same as ascending numbers; `places`: again, as numpy wants
            them for an index (it would convert `rows` each time, which costs more than the access).
        epochs, handles, indices: of the rows, and of the requests and samples that own them; parallel to `rows`.
        version: `Rows.version` at which this was true.
    """

    members: BoolArray
    rows: Int32Array
    places: npt.NDArray[np.intp]
    epochs: npt.NDArray[np.int64]
    handles: list[int]
    indices: list[int]
    version: int


class Rows:
    """Struct of arrays, indexed by row.

    Attributes:
        known: tokens on the host (int32).
        in_flight: samples that launched steps will bring (0 or 1 between steps, 2 for a moment when running ahead).
        computed: tokens whose keys and values are written or being written.
        limit: length at which a sequence ends.
        num_pages: entries of the block table.
        decoding: the last token was sampled in the row, or will be by a launched step: the device has it.
        beam: the row is of a beam search: it is never `decoding`, as its tokens are chosen on the host.
        epoch: changes when a row is freed, so that a late result does not reach the row's next owner.
        version: counts all changes of owners.
        any_stop: by token id, whether some row may stop at it; ids past its end are not in it.
        tokens: known tokens [rows, max_model_len]; table: block table [rows, max_blocks]. Both are reserved at once
            but take memory only where they are written.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, page_size: int):
        self.known = np.zeros(max_num_seqs, np.int32)
        self.in_flight = np.zeros(max_num_seqs, np.int32)
        self.computed = np.zeros(max_num_seqs, np.int32)
        self.limit = np.zeros(max_num_seqs, np.int32)
        self.num_pages = np.zeros(max_num_seqs, np.int32)
        self.decoding = np.zeros(max_num_seqs, np.bool_)
        self.beam = np.zeros(max_num_seqs, np.bool_)
        self.epoch = np.zeros(max_num_seqs, np.int64)
        self.version = 0
        self.handle = np.zeros(max_num_seqs, np.int64)
        self.index = np.zeros(max_num_seqs, np.int32)
        self.wants_logprobs = np.zeros(max_num_seqs, np.bool_)
        self.many_stops = np.zeros(max_num_seqs, np.bool_)
        self.stops = np.full((max_num_seqs, _STOP_COLUMNS), -1, np.int32)
        self.tokens = np.zeros((max_num_seqs, max_model_len), np.int32)
        self.table = np.zeros((max_num_seqs, -(-max_model_len // page_size)), np.int32)
        self.any_stop = np.zeros(1, np.bool_)
        self.owner: list[Sequence | None] = [None] * max_num_seqs
        self._starts = np.arange(max_num_seqs, dtype=np.int64) * max_model_len  # of the rows, in `tokens` laid flat
        self._cohort = self._new_cohort(self.decoding.copy())
        self._free = list(range(max_num_seqs - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, sequence: Sequence, pages: list[int], computed: int) -> int:
        """Give a sequence a row with its tokens and pages."""
        row = self._free.pop()
        self.version += 1
        self.owner[row] = sequence
        sequence.row = row
        count = len(sequence.tokens)
        self.tokens[row, :count] = sequence.tokens
        self.table[row, : len(pages)] = pages
        self.known[row], self.in_flight[row], self.computed[row] = count, 0, computed
        self.limit[row], self.num_pages[row] = sequence.limit, len(pages)
        self.handle[row], self.index[row] = sequence.request.handle, sequence.index
        self.beam[row] = sequence.request.params.use_beam_search
        self.wants_logprobs[row] = sequence.request.params.logprobs is not None
        stops = sequence.stop_ids
        self.many_stops[row] = len(stops) > _STOP_COLUMNS
        self._note_stops(stops)
        self.stops[row] = -1
        self.stops[row, : min(len(stops), _STOP_COLUMNS)] = stops[:_STOP_COLUMNS]
        return row

    def _note_stops(self, stops: tuple[int, ...]) -> None:
        """Ids are never taken back: a stale one costs a second look, not a wrong stop."""
        highest = max(stops, default=-1)
        if highest + 1 >= len(self.any_stop):
            self.any_stop = np.concatenate([self.any_stop, np.zeros(highest + 2 - len(self.any_stop), np.bool_)])
        self.any_stop[list(stops)] = True

    def append_tokens(self, rows: npt.NDArray[np.intp], members: BoolArray, tokens: Int32Array) -> Int32Array:
        """One more known token for each of the rows, no longer in flight; returns the rows' lengths.

        Arguments:
            members: [max_num_seqs], the same rows as a mask: adding it to all is cheaper than picking them out.
        """
        known: Int32Array = self.known.take(rows)
        self.tokens.reshape(-1)[self._starts.take(rows) + known] = tokens
        self.known += members
        self.in_flight -= members
        known += 1
        return known

    def cohort(self, members: BoolArray) -> Cohort:
        """These rows as a cohort: the last one again, if it still holds."""
        last = self._cohort
        if last.version != self.version or last.members.tobytes() != members.tobytes():
            self._cohort = self._new_cohort(members)
        return self._cohort

    def _new_cohort(self, members: BoolArray) -> Cohort:
        places = members.nonzero()[0]
        return Cohort(
            members,
            places.astype(np.int32),
            places,
            self.epoch.take(places),
            self.handle.take(places).tolist(),
            self.index.take(places).tolist(),
            self.version,
        )

    def pages(self, row: int) -> list[int]:
        """The row's block table."""
        pages: list[int] = self.table[row, : self.num_pages[row]].tolist()
        return pages

    def append_pages(self, rows: npt.NDArray[np.intp], pages: list[int]) -> Int32Array:
        """One more page for each of the rows; returns where in their block tables."""
        starts = self.num_pages.take(rows)
        self.table[rows, starts] = pages
        self.num_pages[rows] = starts + 1
        return starts

    def free(self, row: int) -> None:
        sequence = self.owner[row]
        if sequence is None:
            raise ValueError(f"row {row} was freed but is not taken")
        sequence.row = -1
        self.owner[row] = None
        self.decoding[row] = False
        self.epoch[row] += 1
        self.version += 1
        self._free.append(row)
