"""The default model's own tokenizer and template, out of its GGUF file."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
from frontend_help import HARD_TEXTS, settings, texts
from hypothesis import given
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.frontend.detokenizer import detokenizer
from octavo.frontend.load import load_frontend
from octavo.frontend.token_bytes import BYTE_ALPHABET
from octavo.frontend.tokenizer import Tokenizer
from octavo.request import SamplingParams
from octavo.weights.gguf import GGUFFile
from tests.patience import BUSY

pytestmark = pytest.mark.model
LIMITS = SimpleNamespace(vocab_size=49152, max_model_len=8192)


@pytest.fixture(scope="module")
def metadata(smollm2_gguf: Path) -> dict:
    keys = ("model", "pre", "tokens", "merges", "token_type", "bos_token_id", "eos_token_id", "add_bos_token")
    with GGUFFile(smollm2_gguf) as gguf:
        found = {f"tokenizer.ggml.{key}": gguf.metadata[f"tokenizer.ggml.{key}"] for key in keys}
        return found | {"tokenizer.chat_template": gguf.metadata["tokenizer.chat_template"]}


@pytest.fixture(scope="module")
def tokenizer(metadata: dict) -> Tokenizer:
    return Tokenizer.from_gguf(SimpleNamespace(metadata=metadata))


@pytest.fixture(scope="module")
def oracle(metadata: dict) -> PreTrainedTokenizerFast:
    """transformers over the pipeline of the model's published tokenizer.json."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    built = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    built.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[:17]])
    return PreTrainedTokenizerFast(tokenizer_object=built)


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_ids_are_those_of_transformers(tokenizer: Tokenizer, oracle: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == oracle.encode(text)
    assert tokenizer.decode(ids, False) == text == oracle.decode(ids)
    assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


def test_ids_are_those_of_transformers_for_any_text(tokenizer: Tokenizer, oracle: PreTrainedTokenizerFast) -> None:
    # The vocabulary has no token for some bytes that UTF-8 rarely needs, so characters with them get no ids.
    missing = {byte for char, byte in BYTE_ALPHABET.items() if tokenizer.backend.token_to_id(char) is None}

    @settings
    @given(texts)
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids == oracle.encode(text)
        stream = detokenizer(tokenizer, skip_special_tokens=False)
        assert stream.push_all(ids) + stream.flush() == oracle.decode(ids)
        assert oracle.decode(ids) == text or missing.intersection(text.encode())

    check()


def test_a_conversation_has_the_ids_of_transformers(smollm2_gguf: Path, oracle: PreTrainedTokenizerFast) -> None:
    frontend = load_frontend(EngineConfig.of(model=str(smollm2_gguf)), LIMITS)
    assert frontend.tokenizer is not None
    source = frontend.tokenizer.chat_template
    for messages in (
        [{"role": "user", "content": "What is <b>2 + 2</b>? naïve 😀"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x < y"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "<c>"}],
    ):
        expected = render_jinja_template([messages], chat_template=source, add_generation_prompt=True)[0][0]
        text, ids = frontend.inputs.render_chat(messages)
        assert text == expected
        assert ids == oracle.encode(expected)


def test_the_front_end_of_the_default_model(smollm2_gguf: Path) -> None:
    frontend = load_frontend(EngineConfig.of(model=str(smollm2_gguf)), LIMITS)
    request = frontend.inputs.completion("Hello", SamplingParams(max_tokens=None), request_id="r", handle=1)
    assert request.eos_token_ids == (2,)
    assert request.params.max_tokens == 8192 - len(request.prompt_token_ids)
    again = load_frontend(EngineConfig.of(model=str(smollm2_gguf)), LIMITS)
    same = again.inputs.completion("Hello", SamplingParams(max_tokens=None), request_id="r", handle=1)
    assert same.params.seed == request.params.seed  # the engine's --seed makes runs repeatable


def test_options_of_the_front_end(smollm2_gguf: Path, tmp_path: Path) -> None:
    bare = load_frontend(EngineConfig.of(model="nowhere", skip_tokenizer_init=True), LIMITS)
    assert bare.tokenizer is None
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0].content }}!", "utf-8")
    given_template = load_frontend(EngineConfig.of(model=str(smollm2_gguf), chat_template=str(own)), LIMITS)
    assert given_template.inputs.render_chat([{"role": "user", "content": "hi"}])[0] == "hi!"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_frontend(EngineConfig.of(model=str(smollm2_gguf), chat_template=str(tmp_path / "none")), LIMITS)


def test_a_tokenizer_folder_replaces_the_models_own(smollm2_gguf: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    config = EngineConfig.of(model=str(smollm2_gguf), tokenizer=str(tmp_path))
    replaced = load_frontend(config, LIMITS).tokenizer
    assert replaced is not None
    assert replaced.encode("Hello <|im_end|>") == tokenizer.encode("Hello <|im_end|>")
    assert replaced.chat_template is None


def test_building_is_fast(metadata: dict) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        Tokenizer.from_gguf(SimpleNamespace(metadata=metadata))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.15 * BUSY  # 0.15 s on an idle core
