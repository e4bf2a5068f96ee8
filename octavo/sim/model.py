"""A folder that looks like a model's: a byte-level tokenizer and a chat template, without weights."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, pre_tokenizers

END_OF_TEXT = "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_sim_model(folder: Path) -> Path:
    """Write tokenizer files for `SimEngine` into a folder: ids 0 to 255 are bytes (in the alphabet's order), 256 ends
    an answer. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, special=True)])
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": END_OF_TEXT, "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
