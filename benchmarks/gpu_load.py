"""How fast weights come from safetensors on a warm page cache: `python benchmarks/gpu_load.py --json OUT.json`.

Writes random weights of Llama 3.1 8B's shape with fewer layers (8: 5.6 GB), reads the files once, and starts the engine
on them, three times; the rate is of the phase "load the weights".
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_check import LLAMA_8B

from octavo import LLM
from octavo.bench.record import environment
from tests.tiny_models import llama_tensors


def write_model(folder: Path, layers: int) -> int:
    """A checkpoint of a file a layer; returns its bytes."""
    config = LLAMA_8B | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in _meta_tensors(config).items()}
    where, total = {}, 0
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in shapes.items():
        part = name.split(".")[2] if ".layers." in name else "rest"
        tensor = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
        groups.setdefault(f"model-{part}.safetensors", {})[name] = tensor.cpu()
        where[name] = f"model-{part}.safetensors"
        total += tensor.nbytes
    for file, tensors in groups.items():
        save_file(tensors, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return total


def _meta_tensors(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    tiny = config | {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 320, "num_attention_heads": 4}
    names = llama_tensors(tiny | {"num_key_value_heads": 2, "head_dim": 16})
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    sizes = {
        "q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q),
        "gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner),
        "embed_tokens": (vocab, hidden), "lm_head": (vocab, hidden),
    }  # fmt: skip
    return {
        name: torch.empty(next((size for part, size in sizes.items() if part in name), (hidden,))) for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    record = environment() | {"command": "python benchmarks/gpu_load.py " + " ".join(sys.argv[1:]), "runs": []}
    with tempfile.TemporaryDirectory() as scratch:
        total = write_model(Path(scratch), arguments.layers)
        record["bytes"] = total
        for path in Path(scratch).glob("*.safetensors"):
            path.read_bytes()
        torch.cuda.empty_cache()
        for _ in range(3):
            with LLM(scratch, skip_tokenizer_init=True, max_model_len=2048, enforce_eager=True) as llm:
                phases = dict(llm.info.startup)
            phases["gb_a_second"] = total / phases["load the weights"] / 1e9
            record["runs"].append(phases)
            print(json.dumps(phases), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
