"""One rule: every sequence has known and computed tokens, and each step lets computed catch up with known.

`plan` goes through decodes, forks, running chunks and waiting sequences, in that order, within a budget of tokens and
rows. `commit` takes a step's tokens, ends what has ended, and indexes full pages. See README.md for the invariants.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from octavo.errors import InvalidRequestError, OverloadedError
from octavo.kv import PagePool
from octavo.plan import BoolArray, NewRow, StepPlan, StepResult
from octavo.request import EngineRequest, EngineStats, Finished, Started, StepOutputs
from octavo.scheduler import beams_rows
from octavo.scheduler.admission import cached_pages, check_request
from octavo.scheduler.beams_rows import BeamRun, BeamRuns, Hands
from octavo.scheduler.collected import Collected
from octavo.scheduler.config import SchedulerConfig
from octavo.scheduler.draft import Chunk, Draft, Launched, StepClock
from octavo.scheduler.guided import Guide, Guided
from octavo.scheduler.invariants import check_invariants
from octavo.scheduler.logprobs import sample_logprobs, scored_prompt
from octavo.scheduler.queue import WaitingQueue
from octavo.scheduler.rows import Rows
from octavo.scheduler.sequence import Group, Phase, Sequence, make_group
from octavo.scheduler.swap import Swap
from octavo.scheduler.victim import choose_victim


class Scheduler:
    """Plans steps and takes their results.

    With `async_scheduling`, `plan` may be called once more before the result of the plan before it is committed; it
    then assumes that the tokens in flight arrive. `num_host_slots` tells how many pages host memory holds by now.
    """

    def __init__(self, config: SchedulerConfig, num_host_slots: Callable[[], int] = int):
        self.config = config
        self.pool = PagePool(config.num_pages)
        self._rows = Rows(config.max_num_seqs, config.max_model_len, config.page_size)
        self._groups: dict[int, Group] = {}
        self._queue = WaitingQueue()
        self._running: list[Sequence] = []  # in order of service
        self._chunking: list[Sequence] = []  # running, with more than one token to compute
        self._forking: list[Group] = []  # their first sample has computed the prompt
        self._beams = BeamRuns()
        self._hands = Hands(self._rows, self.pool, config.page_size, self._start_row, self._take_chunk, self._leave_row)
        self._guided = Guided(self._hands, self._chunking.append, self._end)
        self._swap = Swap(num_host_slots, config.page_size)
        self._launched: deque[Launched] = deque()
        self._clock = StepClock()
        self._freed_rows: list[int] = []
        self._started: list[Started] = []
        self._step = self._arrivals = 0
        self._preemptions = self._prompt_tokens = self._generated = self._queries = self._hits = 0

    # -- entering and leaving ------------------------------------------------------------------------------------

    def add(self, request: EngineRequest, guide: Guide | None = None) -> None:
        """Queue a request; `guide` is the beginning of its grammar, if it has one.

        Raises:
            OverloadedError: the queue is full.
            ContextLengthError: the prompt leaves no room for a token.
            InvalidRequestError: its handle is in use.
        """
        self.check_room(request)
        self._arrivals += 1
        urgency = float(request.priority) if self.config.policy == "priority" else 0.0
        group = make_group(request, (urgency, self._arrivals), self.config.max_model_len)
        self._groups[request.handle] = group
        if guide is not None:
            self._guided.guides |= {each: guide.copy() if each.index else guide for each in group.sequences}
        if request.params.use_beam_search:
            self._beams[request.handle] = BeamRun(group, self._hands)
        self._queue.push(group.sequences[0])

    def check_room(self, request: EngineRequest) -> None:
        """Refuse what `add` cannot queue; errors as of it."""
        if len(self._queue) >= self.config.max_num_queued_reqs:
            raise OverloadedError(
                f"{len(self._queue)} requests wait already.", fix="Try again later, or raise --max-num-queued-reqs."
            )
        if request.handle in self._groups:
            raise InvalidRequestError(f"The handle {request.handle} is in use.", param="handle")
        check_request(request, self.config)

    def abort(self, handle: int, index: int | None = None) -> bool:
        """End a request or one of its samples; nothing more is said of it. False if it is not here.

        Beams are not samples before the search is over: it ends as a whole or not at all.
        """
        group = self._groups.get(handle)
        if group is None or (index is not None and handle in self._beams):
            return False
        ending = [s for s in group.open if index is None or s.index == index]
        for sequence in ending:
            self._end(sequence)
        return bool(ending)

    @property
    def has_work(self) -> bool:
        """Whether a sequence is open or a result is awaited."""
        return bool(self._groups or self._launched)

    # -- planning ------------------------------------------------------------------------------------------------

    def plan(self) -> StepPlan | None:
        """The next step, or None if nothing can be computed now.

        Raises:
            RuntimeError: results of steps before must be committed first.
        """
        if len(self._launched) > self.config.async_scheduling:
            raise RuntimeError(f"step {self._step} was planned before step {self._launched[0].step} was committed")
        if any(map(self._guided.many_in, self._launched)):
            return None
        draft = self._plan_decodes()
        self._beams.plan(draft)
        self._guided.plan(draft)
        # Forks come before chunks: a page is copied before the forward pass, so what it holds must be of earlier steps.
        forked = not draft.preempted and self._plan_forks(draft)
        for sequence in list(self._chunking):  # prompts that did not fit; their pages are theirs since admission
            if draft.budget > 0:
                self._take_chunk(sequence, draft)
        if forked:
            self._plan_waiting(draft)
        if draft.empty:
            return None
        plan, launched = draft.build(self._step, self._rows, self._freed_rows)
        if self._guided.guides:
            plan = self._guided.add_masks(plan, launched)
        plan = self._swap.add_copies(plan)
        self._launched.append(launched)
        self._freed_rows, self._step = [], self._step + 1
        return plan

    def _plan_decodes(self) -> Draft:
        """One token for every row that has just one to compute, and pages for those that reach a new one."""
        rows, size, preempted = self._rows, self.config.page_size, False
        while True:
            # A row whose tokens in flight bring it to its limit ends with them.
            members: BoolArray = rows.decoding & (rows.known + rows.in_flight < rows.limit)
            full = (members & (rows.computed >= rows.num_pages * size)).nonzero()[0]
            needed = len(full) + self._beams.pages_needed() + self._guided.pages_needed()
            if needed <= self.pool.num_free:
                break
            self._preempt(needed - self.pool.num_free)
            preempted = True
        cohort = rows.cohort(members)
        draft = Draft(self.config.max_num_batched_tokens - len(cohort.rows), cohort, rows.computed.take(cohort.places))
        draft.preempted = preempted
        rows.computed += members
        rows.in_flight += members
        if len(full):
            pages = self.pool.allocate(len(full))
            draft.block_rows, draft.block_starts = full.tolist(), rows.append_pages(full, pages).tolist()
            draft.block_counts, draft.block_pages = [1] * len(full), pages
        return draft

    @property
    def _rows_taken(self) -> int:
        """Rows in use, and those set aside for beams."""
        return len(self._running) + self._beams.num_reserved()

    def _take_chunk(self, sequence: Sequence, draft: Draft) -> None:
        rows, row = self._rows, sequence.row
        start, known = int(rows.computed[row]), int(rows.known[row])
        stop = min(known, start + draft.budget)
        scored_stop = min(stop + 1, sequence.num_prompt) if sequence.scores_prompt else 0
        scored = sequence.request.params.prompt_logprobs if scored_stop > start + 1 else None
        pooling = sequence.request.pooling
        draft.add_chunk(
            Chunk(row, start, stop, stop == known and not pooling, scored, scored_stop, pooling, stop == known)
        )
        rows.computed[row] = stop
        if stop == known:
            self._chunking.remove(sequence)
            if pooling:
                return
            rows.decoding[row] = not rows.beam[row] and sequence not in self._guided.guides
            rows.in_flight[row] = 1
            group = self._groups[sequence.request.handle]
            if sequence.index == 0 and group.forking and group not in self._forking and not rows.beam[row]:
                self._forking.append(group)

    def _plan_forks(self, draft: Draft) -> bool:
        """Further samples of prompts that are computed. False if one has to wait, and so must all that come after."""
        for group in list(self._forking):
            for child in group.forking:
                if draft.budget < 1 or self._rows_taken >= self.config.max_running or not self.pool.num_free:
                    return False
                self._fork(group.sequences[0], child, draft)
            self._forking.remove(group)
        return True

    def _fork(self, parent: Sequence, child: Sequence, draft: Draft) -> None:
        """The child shares the prompt's full pages and recomputes its last token, in a page of its own."""
        last = child.num_prompt - 1
        whole = last // self.config.page_size
        held = self._rows.pages(parent.row)
        self.pool.share(held[:whole])
        own = self.pool.allocate(1)
        if last % self.config.page_size:
            draft.copies.append((held[whole], own[0]))
        self._start_row(child, held[:whole] + own, last, draft)
        child.settled = 0  # the step that computed the shared pages may still be in flight
        self._take_chunk(child, draft)

    def _plan_waiting(self, draft: Draft) -> None:
        """Admit in order of service, while rows, tokens and pages for whole prompts last."""
        while draft.budget > 0 and self._rows_taken < self.config.max_running:
            sequence = self._queue.head()
            if sequence is None:
                return
            beams = self._beams.get(sequence.request.handle)
            if beams is not None and self._rows_taken + sequence.request.params.n > self.config.max_running:
                return
            cached = cached_pages(sequence, self.pool, self.config)
            needed = -(-len(sequence.tokens) // self.config.page_size) - len(cached)
            room = self.pool.num_free - self.pool.num_free_among(cached)
            if needed + (beams.pages_to_admit() if beams is not None else 0) > room:
                return
            self._queue.pop()
            self.pool.share(cached)
            pages, settled = cached + self.pool.allocate(needed), len(cached) * self.config.page_size
            computed = self._swap.restore(sequence, pages, len(cached))
            self._count_admission(sequence, settled)
            self._start_row(sequence, pages, computed, draft)
            sequence.settled = settled  # what is swapped in is indexed: the copy comes before whoever may read it
            self._settle(sequence, computed)
            self._take_chunk(sequence, draft)

    def _count_admission(self, sequence: Sequence, cached: int) -> None:
        group = self._groups[sequence.request.handle]
        if self.config.enable_prefix_caching and not sequence.needs_all_states and not sequence.resumes:
            self._queries += sequence.num_prompt
            self._hits += cached
        if not group.started:
            group.started = True
            self._prompt_tokens += sequence.num_prompt
            self._started.append(Started(sequence.request.handle, cached, time.monotonic()))

    def _start_row(self, sequence: Sequence, pages: list[int], computed: int, draft: Draft) -> None:
        params = sequence.request.params
        penalised = params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        row = self._rows.take(sequence, pages, computed)
        sequence.settled = computed
        known = sequence.tokens if penalised else np.empty(0, np.int32)
        stop_ids = sequence.stop_ids if params.min_tokens and sequence not in self._guided.guides else ()
        if params.use_beam_search:
            params = beams_rows.row_params(sequence.request)
        draft.new_rows.append(NewRow(row, params, sequence.seed, sequence.num_prompt, known, stop_ids))
        draft.add_pages(row, 0, pages)
        sequence.phase = Phase.RUNNING
        self._insert_running(sequence)
        self._chunking.append(sequence)
        self._chunking.sort(key=lambda s: s.key)

    def _insert_running(self, sequence: Sequence) -> None:
        self._running.append(sequence)
        if len(self._running) > 1 and self._running[-2].key > sequence.key:
            self._running.sort(key=lambda s: s.key)

    def _preempt(self, pages_needed: int) -> None:
        """Take one sequence's row and pages away; it comes back with what it knows; what was not swapped
        out is computed anew.

        Its token in flight is dropped with the row's epoch. The draw is a function of seed and position, so the same
        token is drawn again.
        """
        victim = choose_victim(self._running, self._rows, self.pool, pages_needed)
        self._preemptions += 1
        beams = self._beams.get(victim.request.handle)
        if beams is not None:
            self._queue.push(beams.preempt())
            return
        row = victim.row
        self._settle_generated(victim)
        victim.tokens = self._rows.tokens[row, : self._rows.known[row]].copy()
        victim.resumes = True
        self._swap.save(victim, self._rows.pages(row))
        self._leave_row(victim)
        self._queue.push(victim)

    # -- committing ----------------------------------------------------------------------------------------------

    def commit(self, result: StepResult) -> StepOutputs:
        """Take the tokens of the oldest launched step.

        Raises:
            ValueError: the result is not of that step, or does not fit it.
        """
        launched = self._launched[0] if self._launched else None
        if launched is None or launched.step != result.step:
            raise ValueError(f"a result of step {result.step} came; {launched and launched.step} was awaited")
        if len(result.tokens) != launched.num_samples:
            raise ValueError(f"step {result.step} has {len(result.tokens)} tokens for {launched.num_samples} samples")
        self._clock.settle(self._launched.popleft())
        cohort = launched.cohort
        if not launched.chunks and not result.failed and cohort.version == self._rows.version:
            outputs = Collected(cohort.handles, cohort.indices)
            self._commit_tokens(cohort.places, cohort.members, result, None, outputs)
        else:
            outputs = Collected()
            self._commit_what_is_left(launched, result, outputs)
        started, self._started = self._started, []
        return outputs.outputs(started, self.stats())

    def _commit_what_is_left(self, launched: Launched, result: StepResult, outputs: Collected) -> None:
        """Rows that failed end; what the others brought counts if they still belong to whom they were planned for."""
        rows = self._rows
        for position in result.failed:
            row = launched.rows[position]
            owner = rows.owner[row] if rows.epoch[row] == launched.epochs[position] else None
            if owner is not None:
                self._fail(owner, outputs)
        alive = rows.epoch.take(launched.rows) == launched.epochs
        self._commit_chunks(launched, alive, result, outputs)
        sampled = launched.rows[launched.sample & alive].astype(np.intp)
        places = np.flatnonzero(alive[launched.sample])
        of_beams = rows.beam.take(sampled)
        plain = sampled[~of_beams]
        if len(plain):
            members = np.zeros_like(rows.decoding)
            members[plain] = True
            outputs.handles, outputs.indices = rows.handle.take(plain).tolist(), rows.index.take(plain).tolist()
            self._commit_tokens(plain, members, result, places[~of_beams], outputs)
            if self._guided.guides:
                self._generated += self._guided.commit_rows(plain.tolist(), outputs)
        if len(plain) < len(sampled) and result.logprobs is not None:
            carriers = [rows.owner[row] for row in sampled[of_beams].tolist()]
            for run in self._beams.arrive(carriers, places[of_beams].tolist(), result.logprobs):
                before = len(outputs.tokens)
                run.tell(outputs)
                self._generated += len(outputs.tokens) - before
                for sequence in run.group.open:
                    self._end(sequence)

    def _fail(self, sequence: Sequence, outputs: Collected) -> None:
        """A row that failed takes its request with it, and no other."""
        for each in self._groups[sequence.request.handle].open:
            message = "The model's output was not a finite number, or its computation failed."
            outputs.finished.append(Finished(each.request.handle, each.index, "error", None, message))
            self._end(each, failed=True)

    def _commit_chunks(self, launched: Launched, alive: BoolArray, result: StepResult, outputs: Collected) -> None:
        """Index the pages that a chunk filled, and pass on what was scored."""
        scores, vectors = iter(result.prompt_logprobs), iter(result.pooled)
        for chunk, valid in zip(launched.chunks, alive[len(launched.cohort.rows) :].tolist(), strict=True):
            entries = next(scores) if chunk.prompt_logprobs is not None else None
            vector = next(vectors, None) if chunk.pooling and chunk.pooled else None
            sequence = self._rows.owner[chunk.row] if valid else None
            if sequence is None:
                continue
            self._settle(sequence, chunk.stop)
            if entries is not None and chunk.prompt_logprobs is not None:
                outputs.prompt_logprobs.extend(
                    scored_prompt(sequence, self._rows.tokens[chunk.row], chunk.start, entries, chunk.prompt_logprobs)
                )
            if vector is not None:
                outputs.add_embedding(sequence.request.handle, vector)
                self._end(sequence)

    def _commit_tokens(
        self,
        sampled: npt.NDArray[np.intp],
        members: BoolArray,
        result: StepResult,
        places: npt.NDArray[np.intp] | None,
        outputs: Collected,
    ) -> None:
        """Append a token to each row; end those that are done.

        Arguments:
            members: the rows `sampled` as a mask.
            places: where in the result each row's token is; None: they are in its order.
        """
        rows = self._rows
        tokens = result.tokens if places is None else result.tokens[places]
        known = rows.append_tokens(sampled, members, tokens)
        outputs.tokens = tokens.tolist()
        self._generated += len(outputs.tokens)
        if result.logprobs is not None:
            for i in np.flatnonzero(rows.wants_logprobs[sampled]).tolist():
                owner, place = rows.owner[sampled[i]], i if places is None else int(places[i])
                if owner is not None:
                    outputs.logprobs.append(sample_logprobs(owner, outputs.tokens[i], result.logprobs, place))
        ended = known >= rows.limit.take(sampled)
        if np.count_nonzero(rows.any_stop.take(tokens, mode="clip")):
            ended |= (rows.stops[sampled] == tokens[:, None]).any(1) | rows.many_stops[sampled]
        if np.count_nonzero(ended):
            for i in np.flatnonzero(ended).tolist():
                self._end_if_done(int(sampled[i]), outputs.tokens[i], int(known[i]), outputs)

    def _end_if_done(self, row: int, token: int, known: int, outputs: Collected) -> None:
        sequence = self._rows.owner[row]
        done = sequence.end_at(token, known) if sequence is not None else None
        if sequence is not None and done is not None:
            outputs.finished.append(Finished(sequence.request.handle, sequence.index, *done))
            self._end(sequence)

    # -- pages and rows ------------------------------------------------------------------------------------------

    def _settle(self, sequence: Sequence, computed: int) -> None:
        """The step that computed the sequence's tokens up to here has come back: full pages become findable."""
        size, row = self.config.page_size, sequence.row
        first, count = sequence.settled // size, computed // size
        sequence.settled = computed
        if self.config.enable_prefix_caching and count > first:
            digests = sequence.extend_digests(self._rows.tokens[row], count, size)
            for page, digest in zip(self._rows.table[row, first:count].tolist(), digests[first:], strict=True):
                self.pool.index(page, digest)

    def _settle_generated(self, sequence: Sequence) -> None:
        """Index what was generated only when a sequence leaves its row: the steady step stays free of hashing.

        Tokens came back, so all before the last of them are computed; without one, chunks have settled what is. Guided
        sequences run in chunks: of their tokens some are known before they are computed.
        """
        if sequence in self._guided.guides:
            return
        known = int(self._rows.known[sequence.row])
        if known > len(sequence.tokens):
            self._settle(sequence, known - 1)

    def _end(self, sequence: Sequence, *, failed: bool = False) -> None:
        """Take a sequence out of wherever it is, for good. What a failed one computed shall not be found again."""
        group = self._groups[sequence.request.handle]
        if sequence.phase is Phase.WAITING:
            self._queue.remove(sequence)
        elif sequence.phase is Phase.RUNNING:
            if failed:
                self.pool.forget(self._rows.pages(sequence.row))
            elif sequence.request.handle not in self._beams:  # beams' pages were indexed as they filled
                self._settle_generated(sequence)
            generated = int(self._rows.known[sequence.row]) - sequence.num_prompt
            self._queue.charge(sequence.request.tenant, generated)
            self._leave_row(sequence)
        sequence.phase = Phase.ENDED
        self._swap.drop(sequence)
        self._guided.guides.pop(sequence, None)
        if sequence.index == 0 and sequence.request.handle not in self._beams:
            self._orphan(group)
        if not group.open:
            del self._groups[sequence.request.handle]
            self._beams.pop(sequence.request.handle, None)

    def _leave_row(self, sequence: Sequence) -> None:
        row = sequence.row
        self.pool.release(self._rows.pages(row))
        self._rows.free(row)
        self._freed_rows.append(row)
        self._running.remove(sequence)
        if sequence in self._chunking:
            self._chunking.remove(sequence)
        self._guided.leave_row(sequence)
        group = self._groups[sequence.request.handle]
        if sequence.index == 0 and group in self._forking:
            self._forking.remove(group)

    def _orphan(self, group: Group) -> None:
        """The first sample is gone and has no pages to share: the others wait like any sequence."""
        for child in group.forking:
            self._queue.push(child)

    # -- telling -------------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Counters since the start, gauges of now."""
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._queue) + sum(len(group.forking) for group in self._forking),
            num_pages=self.pool.num_pages,
            num_free_pages=self.pool.num_free,
            num_preemptions=self._preemptions,
            prefix_queries=self._queries,
            prefix_hits=self._hits,
            num_evictions=self.pool.num_evictions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generated,
            num_steps=self._step,
            jump_tokens=self._guided.num_jumped,
            last_step=self._clock.last,
            swapped_out_pages=self._swap.num_out,
            swapped_in_pages=self._swap.num_in,
        )

    def check(self) -> None:
        """Verify the invariants of README.md; raises RuntimeError with the first that does not hold."""
        check_invariants(self._rows, self.pool, self._swap, self._running, idle=not self._groups)
