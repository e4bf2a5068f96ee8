"""The runner on a GPU: rows live on the device, a step's inputs are built there, small steps are CUDA graphs.

The host sends one packed copy of the plan and a few lists of sampled rows, launches, and learns the tokens from a
pinned copy one step later. In the steady state nothing waits for the device but the reading of that copy.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from octavo.attention import AttentionMetadata
from octavo.attention.fa3 import Fa3Extend, Fa3Fresh
from octavo.kernels.batch_invariant import row_logsumexp
from octavo.kernels.fp8 import tune_products
from octavo.kernels.linear import FEW, MANY
from octavo.kernels.timing import CALLS
from octavo.kernels.triton.copy_pages import PageCopier
from octavo.kernels.triton.invariant_attention import InvariantAttention
from octavo.kernels.triton.launch import use_pdl
from octavo.kernels.triton.paged_decode import PagedDecode, decode_tuning
from octavo.kernels.triton.paged_extend import PagedExtend
from octavo.kernels.triton.prepare_step import pack_step, prepare_step, write_blocks
from octavo.kernels.triton.process_logits import process_logits
from octavo.kernels.triton.sample import Sampler
from octavo.kernels.triton.swap_pages import PageSwapper
from octavo.kernels.triton.warm_up import compile_all, every_variant, recorded
from octavo.kernels.tuned_fp8 import fp8_matrices_seen
from octavo.kernels.tuned_linear import matrices_seen, tune
from octavo.layers.batch import ForwardBatch
from octavo.plan import Float32Array, Int32Array, LogprobArrays, PromptLogprobsPlan, StepPlan
from octavo.runner.attend_rows import AttendRows, attention_of, fresh_from, over_tiles
from octavo.runner.launched import Failed, Launched
from octavo.runner.pooling import Pooler
from octavo.runner.prefix_groups import SharingCost
from octavo.runner.runner import Model, Pending
from octavo.runner.sampler import logprobs_of
from octavo.runner.sampling_tables import DeviceRows
from octavo.runner.shared_prefix import FEWEST_ROWS, MAX_HEAD_DIM, SharedPages
from octavo.runner.step_buffers import RING, DeviceShape, HostOutputs, StepBuffers
from octavo.runner.step_graphs import ExtendTiles, Size, StepGraphs
from octavo.runner.swap import HostPages

logger = logging.getLogger(__name__)

FEW_ROWS = 8
FEW_LAYERS = CALLS + 1  # of the model, to see and to load its kernels; products are timed over so many matrices
Phase = Callable[[str], AbstractContextManager[Callable[[float], None]]]


def tuning(rows: int, shape: DeviceShape, fp8: bool) -> dict[str, int]:
    """The kernel's measured tuning, where it was measured; `fp8`: for pages of e4m3."""
    return decode_tuning(rows, fp8) if shape.head_dim <= 128 and shape.page_size >= 64 else {}


def _plan_of_nothing(singles: int, tokens: int, context: int) -> StepPlan:
    """Rows of one token and one of `tokens` behind `context`, in pages that nobody has yet."""
    lengths = np.array([1] * singles + ([tokens] if tokens > 0 else []), np.int32)
    rows = np.arange(len(lengths), dtype=np.int32)
    every = np.ones(len(lengths), np.bool_)
    contexts = np.zeros_like(lengths)
    contexts[-1] = context
    return StepPlan(0, rows, lengths, contexts, every, every, np.zeros(int(lengths.sum()), np.int32))


class CudaRunner:
    """Runs plans in order on one GPU; `launch` returns when the work is queued.

    Args:
        graphs: capture steps as CUDA graphs; without, everything is launched kernel by kernel.
        fa3: computes prompts; None is the Triton kernel.
        fresh: computes prompts' beginnings, where FA3 cannot read the pages; None is what computes all others.
        kept: file in which choices made at a start are kept for the next.
        share: read pages that rows share once, in steps where it pays.
        num_host_slots: pages of preempted sequences that host memory shall hold.
    """

    def __init__(
        self,
        model: Model,
        kv_caches: list[tuple[torch.Tensor, torch.Tensor]],
        cos_sin: torch.Tensor,
        shape: DeviceShape,
        *,
        graphs: bool,
        fa3: Fa3Extend | None = None,
        fresh: Fa3Fresh | None = None,
        kept: Path | None = None,
        share: bool = True,
        num_host_slots: int = 0,
    ):
        self._model, self._kv_caches, self._cos_sin, self._shape = model, kv_caches, cos_sin, shape
        self._device = device = cos_sin.device
        self._buffers = StepBuffers(shape, device)
        self._rows = DeviceRows(shape.max_num_seqs + 1, shape.vocab_size, device)
        self._sampler = Sampler(shape.max_num_seqs, shape.vocab_size, device)
        heads = {
            "num_kv_heads": shape.num_kv_heads,
            "group": shape.num_heads // shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "page_size": shape.page_size,
        }
        fp8 = kv_caches[0][0].dtype == torch.float8_e4m3fn
        self._decodes = {
            rows: PagedDecode(**heads, max_rows=rows, device=device, **tuning(rows, shape, fp8))
            for rows in sorted({min(FEW_ROWS, shape.max_num_seqs), shape.max_num_seqs})
        }
        self._shared: SharedPages | None = None
        self._invariant: InvariantAttention | None = None
        self._single_tiles = torch.zeros(shape.max_num_seqs, 2, dtype=torch.int32, device=device)
        self._single_tiles[:, 0] = torch.arange(shape.max_num_seqs)
        if shape.batch_invariant:
            self._invariant = InvariantAttention(**heads, max_keys=shape.max_model_len, device=device)
        elif share and shape.head_dim <= MAX_HEAD_DIM and shape.max_num_seqs >= FEWEST_ROWS:
            self._shared = SharedPages(
                **heads,
                max_rows=shape.max_num_seqs,
                max_blocks=shape.max_blocks,
                cost=SharingCost.of(
                    heads["num_kv_heads"], heads["group"], shape.head_dim, kv_caches[0][0].element_size()
                ),
                ring=RING,
                device=device,
            )
        self._extend, self._fa3, self._fresh, self._kept = PagedExtend(**heads), fa3, fresh, kept
        caches = [cache for pair in kv_caches for cache in pair]
        self._copy_pages = PageCopier(caches)
        self._pool_tokens = len(kv_caches[0][0]) * shape.page_size
        self._host = HostPages(num_host_slots, PageSwapper(caches), device)
        tiled = self._invariant or self._extend
        self._graphs = StepGraphs(
            shape.max_num_seqs,
            shape.max_num_batched_tokens,
            sharing=self._shared is not None,
            few_pairs=fa3 is not None or fresh is not None,
            tiles=ExtendTiles(shape.max_num_seqs, tiled.tokens_per_tile, self._invariant is not None, device),
        )
        self._use_graphs = graphs
        self._steps = 0
        self._pooler = Pooler()

    # -- graphs ----------------------------------------------------------------------------------------------------

    def prepare(self, phase: Phase) -> None:
        """Whatever must be before the first step: kernels, choices of products, graphs.

        Args:
            phase: times a named phase, and tells whoever waits how much of it is done.
        """
        with phase("compile kernels"):
            few = self._model.shallow(FEW_LAYERS)
            with recorded() as launches, every_variant():
                self._run_each_path(few)
            compile_all(launches.values())
            logger.info("%d kernels compiled or found in their cache", len(launches))
            launches.clear()  # and with them the memory of their tensors
            with matrices_seen() as matrices, fp8_matrices_seen() as fp8_matrices, every_variant():
                self._run_each_path(few)
        if not self._use_graphs:
            return
        with phase("choose products"):
            # Prompts' steps have as many tokens as may be.
            sizes = {number for size in self._graphs.sizes() for number in (size.tokens, size.samples)}
            rows = sorted({*sizes, max(self._shape.max_num_batched_tokens, *sizes)})
            count = tune(matrices, [number for number in rows if number > FEW], self._kept, many=MANY)
            with torch.inference_mode():
                count += tune_products(fp8_matrices, rows, self._kept)
            logger.info("%d products timed", count)
        with phase("capture graphs") as report:
            self._graphs.capture(self._step_of, report)

    def _run_each_path(self, few: Model) -> None:
        """Run each path once on nothing, with a few of the model's layers: first to see which kernels there are, then
        so that all are loaded."""
        model, self._model = self._model, few
        try:
            self._run_each_path_with_its_model()
        finally:
            self._model = model

    def _run_each_path_with_its_model(self) -> None:
        shape, buffers = self._shape, self._buffers
        with torch.inference_mode():
            sizes = {min(size, shape.max_num_seqs) for size in (1, 2, FEW_ROWS + 1, shape.max_num_seqs)}
            for size, shared in itertools.product(sizes, {False, self._shared is not None}):
                logits = self._step_of(Size(size, size, shared, single=True))
            row_logsumexp(logits.float())
            mixed = [size for size in self._graphs.sizes() if not size.single]
            if self._use_graphs and mixed:
                self._step_of(mixed[-1])
            counts = {min(1, shape.max_num_seqs - 1), min(FEW_ROWS, shape.max_num_seqs - 1)}
            for singles, context in itertools.product(counts, (0, 1)):
                plan = _plan_of_nothing(singles, min(64, shape.max_num_batched_tokens - singles), context)
                size = self._pack(plan, buffers.host_packed[0])
                buffers.packed[:size].copy_(buffers.host_packed[0][:size])
                write_blocks(buffers.packed, buffers.block_table)
                for shared in {False, self._shared is not None}:
                    self._mixed_step(plan, shared=shared)
            self._copy_pages(torch.zeros(1, 2, dtype=torch.int32, device=self._device))
            self._host.compile()
        torch.cuda.synchronize()
        buffers.packed.zero_()

    # -- a step ----------------------------------------------------------------------------------------------------

    @property
    def num_host_slots(self) -> int:
        """Pages that host memory holds by now."""
        return self._host.num_ready

    def launch(self, plan: StepPlan) -> Pending:
        """Queue a step; steps run in the order of their launch. One that cannot be launched fails its own requests."""
        if not self._host.started and 2 * int(plan.context_lens.sum()) > self._pool_tokens:
            self._host.start()  # getting it disturbs the steps a little: not before it may be needed
        self._host.copy(plan.swap_out, plan.swap_in)  # of other requests' pages too: if this raises, nothing is sure
        try:
            with torch.inference_mode():
                return self._launch(plan)
        except Exception:
            logger.exception("step %d failed; its %d sequences end with an error", plan.step, len(plan.rows))
            return Failed(plan)

    def _launch(self, plan: StepPlan) -> Launched:
        slot = self._steps % RING
        self._steps += 1
        buffers = self._buffers
        size = self._pack(plan, buffers.host_packed[slot])
        buffers.packed[:size].copy_(buffers.host_packed[slot][:size], non_blocking=True)
        write_blocks(buffers.packed, buffers.block_table)
        shared = False
        if self._shared is not None:
            self._shared.update(plan)
            shared = self._shared.begin(plan, slot)
        if len(plan.copy_pages):
            self._copy_pages(torch.from_numpy(plan.copy_pages).to(self._device, non_blocking=True))
        self._rows.update(plan)
        chosen = np.flatnonzero(plan.sample).astype(np.int32)
        count = len(chosen)
        found = self._graphs.find(plan, count, shared)
        self._send_samples(plan, chosen, found.size.samples if found else count, buffers.host_samples[slot])
        scored: tuple[LogprobArrays, ...] = ()
        pooled: tuple[Float32Array, ...] = ()
        unusable: tuple[int, ...] = ()
        self._pooler.forget(plan)
        if found is not None:
            if not found.size.single:
                self._graphs.tiles.send(plan, found.size.tokens, slot)
            found.graph.replay()
            logits = found.logits
        else:
            hidden, logits = self._mixed_step(plan, sample=count, shared=shared)
            scored = tuple(self._score(plan, hidden, entry) for entry in plan.prompt_logprobs)
            pooled, unusable = self._pooler.pool(plan, hidden)  # waits for the device, as logprobs do
        logprobs = self._top_logprobs(plan, chosen, logits)
        host = buffers.host_outputs[slot]
        return Launched(plan, self._fetch(host, count), host, chosen, logprobs, scored, pooled, unusable)

    def close(self) -> None:
        """Wait for the device and let go of its memory."""
        torch.cuda.synchronize()
        self._host.close()
        self._graphs.clear()
        self._kv_caches = []

    @staticmethod
    def _pack(plan: StepPlan, out: torch.Tensor) -> int:
        return pack_step(
            out.numpy(),
            rows=plan.rows,
            query_lens=plan.query_lens,
            context_lens=plan.context_lens,
            from_host=plan.from_host,
            token_ids=plan.token_ids,
            block_rows=plan.block_rows,
            block_starts=plan.block_starts,
            block_counts=plan.block_counts,
            block_pages=plan.block_pages,
        )

    def _send_samples(self, plan: StepPlan, chosen: Int32Array, padded: int, host: torch.Tensor) -> None:
        """Rows, positions and places of the samples; padding points at the row that no sequence has."""
        count, values = len(chosen), host.numpy()
        values[0, :padded] = self._shape.max_num_seqs
        values[1:, :padded] = 0
        values[0, :count] = plan.rows[chosen]
        values[1, :count] = (plan.context_lens + plan.query_lens)[chosen]
        values[2, :count] = np.cumsum(plan.query_lens)[chosen] - 1
        self._buffers.samples[:, :padded].copy_(host[:, :padded], non_blocking=True)

    def _step_of(self, size: Size) -> torch.Tensor:
        """Everything of a step of a size → its logits; this is what a graph holds."""
        samples = self._buffers.samples[:, : size.samples]
        rows = min(size.tokens, self._shape.max_num_seqs)
        metadata = self._prepare(size.tokens, rows, 1 if size.single else size.tokens)
        tiles = self._single_tiles[:rows] if size.single else self._graphs.tiles.of(size.tokens)
        if self._invariant is not None:
            attend = attention_of(over_tiles(self._invariant, metadata, tiles))
        else:
            prompts = None if size.single else over_tiles(self._extend, metadata, tiles)
            attend = attention_of(self._plan_decode(metadata, size.shared), prompts)
        wanted = None if size.single else samples[2]
        logits = self._model.logits(self._model.hidden_states(self._batch(metadata, attend, wanted)))
        self._sample(logits, samples)
        return logits

    def _plan_decode(self, metadata: AttentionMetadata, shared: bool) -> AttendRows:
        """What attends for the rows of one token; with sharing, of the groups that were sent last."""
        decode, pdl = self._decode_for(len(metadata.seq_lens)), use_pdl(self._device)
        where = (metadata.block_table, metadata.seq_lens, metadata.query_start_loc)
        kernel = self._shared.kernel if self._shared is not None and shared else None
        if kernel is not None:
            kernel.plan()
        decode.plan(*where[1:], kernel.state[0] if kernel is not None else None)

        def attend(
            q: torch.Tensor,
            keys: torch.Tensor,
            values: torch.Tensor,
            scale: float,
            out: torch.Tensor,
            **pages: torch.Tensor,
        ) -> None:
            if kernel is not None:
                kernel(q, keys, values, where[0], scale, k_scale=pages.get("k_scale"), pdl=pdl)
            state = kernel.state if kernel is not None else None
            decode(q, keys, values, *where, scale, out, shared=state, pdl=pdl, **pages)

        return attend

    def _mixed_step(
        self, plan: StepPlan, *, sample: int = 1, shared: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Any step, kernel by kernel: single-token rows by one attention kernel, longer ones by the other."""
        buffers = self._buffers
        longest = int(plan.query_lens.max())
        metadata = self._prepare(plan.num_tokens, len(plan.rows), longest)
        fresh: Fa3Fresh | None = None
        if self._invariant is not None:
            attend = attention_of(over_tiles(self._invariant, metadata, self._send_tiles(plan)))
        else:
            singles = int((plan.query_lens == 1).sum())  # they come first
            decode = self._plan_decode(metadata, shared) if singles else None
            fresh, end = self._plan_fresh(plan, metadata)
            attend = attention_of(decode, self._plan_extend(plan, metadata, singles, end), fresh=fresh)
        places = buffers.samples[:, :sample]
        wanted = None if plan.prompt_logprobs or plan.pooling else places[2]
        hidden = self._model.hidden_states(self._batch(metadata, attend, wanted, keep_keys=fresh is not None))
        if not sample:
            return hidden, hidden
        logits = self._model.logits(hidden[places[2]] if wanted is None else hidden)
        self._sample(logits, places)
        return hidden, logits

    def _plan_fresh(self, plan: StepPlan, metadata: AttentionMetadata) -> tuple[Fa3Fresh | None, int]:
        """What attends for the rows that begin a sequence, and the first of them; if nothing does, where rows end."""
        first, end = fresh_from(plan.query_lens, plan.context_lens), len(plan.rows)
        if self._fresh is None or first == end:
            return None, end
        lengths = plan.query_lens[first:]
        token = plan.num_tokens - int(lengths.sum())
        self._fresh.begin(metadata.query_start_loc, first_row=first, first_token=token, longest=int(lengths.max()))
        return self._fresh, first

    def _plan_extend(
        self, plan: StepPlan, metadata: AttentionMetadata, first_row: int, end_row: int
    ) -> AttendRows | None:
        """What attends for the rows of several tokens, [first_row, end_row), over pages; None where there are none."""
        if first_row == end_row:
            return None
        if self._fa3 is not None:
            self._fa3.begin(
                metadata.query_start_loc,
                metadata.seq_lens,
                metadata.block_table,
                first_row=first_row,
                end_row=end_row,
                longest=int(plan.query_lens[first_row:end_row].max()),
                dtype=self._kv_caches[0][0].dtype,
            )
            return self._fa3
        return over_tiles(self._extend, metadata, self._send_tiles(plan, end_row))

    def _send_tiles(self, plan: StepPlan, end_row: int | None = None) -> torch.Tensor:
        """Of the rows before `end_row`."""
        tiles = self._graphs.tiles.plan(plan.query_lens[:end_row], plan.context_lens[:end_row])
        return torch.from_numpy(tiles).pin_memory().to(self._device, non_blocking=True)

    def _prepare(self, num_tokens: int, num_rows: int, max_query_len: int) -> AttentionMetadata:
        buffers = self._buffers
        metadata = AttentionMetadata(
            query_start_loc=buffers.query_start[: num_rows + 1],
            seq_lens=buffers.seq_lens[:num_rows],
            block_table=buffers.batch_table[:num_rows],
            slot_mapping=buffers.slots[:num_tokens],
            positions=buffers.positions[:num_tokens],
            max_query_len=max_query_len,
            max_seq_len=self._shape.max_model_len,
        )
        prepare_step(
            buffers.packed,
            buffers.block_table,
            buffers.last_token,
            token_ids=buffers.token_ids[:num_tokens],
            positions=metadata.positions,
            slot_mapping=metadata.slot_mapping,
            seq_lens=metadata.seq_lens,
            query_start_loc=metadata.query_start_loc,
            batch_block_table=metadata.block_table,
            page_size=self._shape.page_size,
        )
        return metadata

    def _batch(
        self,
        metadata: AttentionMetadata,
        attend: Callable[..., torch.Tensor],
        wanted: torch.Tensor | None = None,
        *,
        keep_keys: bool = False,
    ) -> ForwardBatch:
        ids = self._buffers.token_ids[: len(metadata.positions)]
        return ForwardBatch(ids, metadata, self._cos_sin, self._kv_caches, attend, wanted, keep_keys)

    def _decode_for(self, num_rows: int) -> PagedDecode:
        """Few rows have an instance of their own, which plans them sooner, and with e4m3 pages has fewer programs."""
        return next(decode for rows, decode in self._decodes.items() if rows >= num_rows)

    def _sample(self, logits: torch.Tensor, samples: torch.Tensor) -> None:
        buffers, count = self._buffers, samples.shape[1]
        process_logits(logits, samples[0], samples[1], self._rows.tables, self._sampler.processed)
        self._sampler(
            logits,
            samples[0],
            samples[1],
            self._rows.tables,
            tokens=buffers.tokens[:count],
            logprobs=buffers.logprobs[:count],
            ranks=buffers.ranks[:count],
            failed=buffers.failed[:count],
            last_token=buffers.last_token,
        )

    def _fetch(self, host: HostOutputs, count: int) -> torch.cuda.Event:
        """Copy the results to the host behind the step, without holding up the next."""
        buffers = self._buffers
        host.tokens[:count].copy_(buffers.tokens[:count], non_blocking=True)
        host.failed[:count].copy_(buffers.failed[:count], non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return event

    # -- logprobs: these wait for the device -------------------------------------------------------------------------

    def _top_logprobs(self, plan: StepPlan, chosen: Int32Array, logits: torch.Tensor) -> LogprobArrays | None:
        counts = [self._rows.logprobs[row] for row in plan.rows[chosen].tolist()]
        if all(count is None for count in counts):
            return None
        tokens = self._buffers.tokens[: len(chosen)].long()
        return logprobs_of(lambda part: logits[part], tokens, max(count or 0 for count in counts))

    def _score(self, plan: StepPlan, hidden: torch.Tensor, entry: PromptLogprobsPlan) -> LogprobArrays:
        start = int(plan.query_lens[: entry.index].sum())
        rows = hidden[start : start + len(entry.targets)]
        targets = torch.from_numpy(entry.targets.astype(np.int64)).to(self._device)
        return logprobs_of(lambda part: self._model.logits(rows[part]), targets, entry.k)
