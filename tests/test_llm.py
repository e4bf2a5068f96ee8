"""The Python API on a small random model: batches, streams, conversations, stops, errors, the prefix cache."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.errors import ConfigError, ContextLengthError, InvalidRequestError, ModelFileError, ModelNotFoundError
from tests.tiny_models import make_tiny_gguf, make_tiny_llama

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), block_size=4, threads=1) as llm:
        yield llm


def test_results_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = ["one", "two hundred", [5, 6, 7], "four"]
    together = llm.generate(prompts, GREEDY, use_tqdm=False)
    alone = [llm.generate(prompt, GREEDY)[0] for prompt in prompts]
    assert [r.outputs[0].token_ids for r in together] == [r.outputs[0].token_ids for r in alone]
    assert [r.prompt for r in together] == ["one", "two hundred", None, "four"]
    assert together[2].prompt_token_ids == [5, 6, 7]
    assert all(r.finished and len(r.outputs[0].token_ids) == 12 for r in together)
    text = llm.tokenizer.decode(together[0].outputs[0].token_ids)
    assert together[0].outputs[0].text == text


def test_parameters_may_be_one_each(llm: LLM) -> None:
    results = llm.generate(["a", "b"], [SamplingParams(max_tokens=2), SamplingParams(max_tokens=3)], use_tqdm=False)
    assert [len(r.outputs[0].token_ids) for r in results] == [2, 3]
    with pytest.raises(InvalidRequestError, match="2 prompts but 1 params"):
        llm.generate(["a", "b"], [SamplingParams()])
    assert llm.generate([]) == []


def test_a_seed_repeats_and_samples_differ(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=8, ignore_eos=True)
    first, second = (llm.generate("again", params, use_tqdm=False)[0] for _ in range(2))
    texts = [output.token_ids for output in first.outputs]
    assert texts == [output.token_ids for output in second.outputs]
    assert len({tuple(ids) for ids in texts}) == 3
    noisy = llm.generate(["noise"] * 5 + ["again"], [SamplingParams(seed=1)] * 5 + [params], use_tqdm=False)
    assert [output.token_ids for output in noisy[-1].outputs] == texts


def test_a_stream_grows_and_can_be_left(llm: LLM) -> None:
    whole = llm.generate("stream", GREEDY)[0].outputs[0]
    lengths = []
    for output in llm.stream("stream", GREEDY):
        assert whole.text.startswith(output.outputs[0].text)
        lengths.append(len(output.outputs[0].token_ids))
    assert lengths == list(range(1, 13))
    stream = llm.stream("left", SamplingParams(max_tokens=100, ignore_eos=True))
    next(stream)
    stream.close()
    llm.generate("after", GREEDY)
    assert llm.stats().num_running == 0 and llm.stats().num_free_pages == llm.stats().num_pages


def test_stop_strings_cut_the_text_and_free_the_sequence(llm: LLM) -> None:
    text = llm.generate("stop here", GREEDY)[0].outputs[0].text
    stop = next(text[i : i + 2] for i in range(2, len(text) - 1) if text[i : i + 2].isascii())
    output = llm.generate("stop here", SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=(stop,)))[0]
    assert output.outputs[0].text == text[: text.index(stop)]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", stop)
    assert llm.stats().num_running == 0


def test_a_conversation_goes_through_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    answer = llm.chat(messages, GREEDY)[0]
    assert llm.tokenizer.decode(answer.prompt_token_ids, False) == "<|user|>hello<|end|><|assistant|>"
    assert [a.outputs[0].token_ids for a in llm.chat([messages, messages], GREEDY, use_tqdm=False)] == [
        answer.outputs[0].token_ids
    ] * 2


def test_a_second_equal_prompt_is_cached_and_computes_less(llm: LLM) -> None:
    prompt = [9, 8] * 40
    steps = []
    for _ in range(2):
        before = llm.stats()
        result = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=None))[0]
        steps.append((result.num_cached_tokens, llm.stats().prefix_hits - before.prefix_hits))
    assert steps == [(0, 0), (76, 76)]
    assert llm.generate(prompt, GREEDY, cache_salt="other")[0].num_cached_tokens == 0


def test_bad_requests_are_refused_and_nothing_runs(llm: LLM) -> None:
    cases: list[tuple[Any, SamplingParams, type[Exception], str]] = [
        ([1, 400], SamplingParams(), InvalidRequestError, "400"),
        ([-1], SamplingParams(), InvalidRequestError, "-1"),
        ([], SamplingParams(), InvalidRequestError, "empty|no token"),
        ([1] * 300, SamplingParams(), ContextLengthError, "300"),
        ("x", SamplingParams(temperature=float("nan")), InvalidRequestError, "temperature"),
        ("x", SamplingParams(top_p=0), InvalidRequestError, "top_p"),
        ("x", SamplingParams(n=10**9), InvalidRequestError, "n"),
        ("x", SamplingParams(logit_bias={400: 1.0}), InvalidRequestError, "400"),
        ("x", SamplingParams(min_tokens=5, max_tokens=2), InvalidRequestError, "min_tokens"),
    ]
    before = llm.stats().num_steps
    for prompt, params, error, named in cases:
        with pytest.raises(error, match=named):
            llm.generate([[2, 3], prompt] if prompt != [] else [[]], params, use_tqdm=False)
    assert llm.stats().num_steps == before
    assert len(llm.generate("still here", GREEDY)[0].outputs[0].token_ids) == 12


def test_closing_frees_memory_and_threads(folder: Path) -> None:
    with LLM(str(folder), threads=1) as llm:
        llm.generate("x", GREEDY)
        cache = weakref.ref(llm._engine._runner._kv_caches[0][0])
        assert any(thread.name.startswith("octavo-runner") for thread in threading.enumerate())
    assert cache() is None
    del llm


def test_without_a_tokenizer_ids_go_in_and_out(folder: Path) -> None:
    with LLM(str(folder), skip_tokenizer_init=True, threads=1) as llm:
        output = llm.generate([[1, 2, 3]], GREEDY, use_tqdm=False)[0].outputs[0]
        assert output.text == "" and len(output.token_ids) == 12
        with pytest.raises(InvalidRequestError, match="tokenizer"):
            llm.generate("text")


def test_dummy_weights_need_a_config_only(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    with LLM(str(folder), load_format="dummy", threads=1) as llm:
        assert len(llm.generate("x", GREEDY)[0].outputs[0].token_ids) == 12


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_gguf_and_safetensors_of_one_model_agree(tmp_path: Path, quantization: str) -> None:
    gguf = make_tiny_gguf(tmp_path / "tiny.gguf", quantization="F32")
    folder = make_tiny_llama(tmp_path / "tiny", intermediate_size=128)
    texts = []
    for path in (gguf, folder):
        with LLM(str(path), quantization=quantization, skip_tokenizer_init=True, threads=1) as llm:
            texts.append(llm.generate([[3, 1, 4, 1, 5]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"max_model_len": 10_000}, ConfigError, "--max-model-len 10000 exceeds"),
        ({"kv_cache_memory_bytes": 100}, ConfigError, "holds not one page"),
        ({"num_gpu_blocks_override": 2, "max_model_len": 200}, ConfigError, "needs 13 pages, but there are 2"),
        ({"device": "cuda"}, ConfigError, "CPU"),
        ({"dtype": "float16"}, ConfigError, "float16"),
        ({"max_num_sequences": 3}, ConfigError, "max_num_seqs"),
    ],
)
def test_impossible_options_say_what_to_do(folder: Path, options: dict[str, Any], error: type, named: str) -> None:
    with pytest.raises(error, match=named) as caught:
        LLM(str(folder), **options)
    assert caught.value.fix


def test_damaged_models_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model .smolm2.*Did you mean"):
        LLM("smolm2")
    cut = make_tiny_gguf(tmp_path / "cut.gguf")
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="does not lie inside"):
        LLM(str(cut))
    damaged = make_tiny_llama(tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        LLM(str(damaged))
    other = make_tiny_llama(tmp_path / "other", architectures=["GPT2LMHeadModel"])
    with pytest.raises(ModelFileError, match=r"GPT2LMHeadModel.*not supported"):
        LLM(str(other))
    wrong = make_tiny_llama(tmp_path / "wrong", num_hidden_layers=2)
    config = (wrong / "config.json").read_text().replace('"hidden_size": 64', '"hidden_size": 128')
    (wrong / "config.json").write_text(config)
    with pytest.raises(ModelFileError, match="has shape"):
        LLM(str(wrong))


def test_a_closed_engine_holds_no_memory(tmp_path: Path) -> None:
    """So that another one may be opened in the same process."""
    llm = LLM(str(make_tiny_llama(tmp_path / "model")), device="cpu")
    llm.generate("some text", SamplingParams(max_tokens=3), use_tqdm=False)
    runner = llm._engine._runner
    freed = [weakref.ref(runner), weakref.ref(runner._model)]
    del runner
    llm.close()
    assert [ref() for ref in freed] == [None, None]
    assert llm.stats().num_pages > 0
    llm.close()
