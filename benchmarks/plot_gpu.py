"""The table and the plot of docs/performance.md from what `gpu_peers.py` measured.

    python benchmarks/plot_gpu.py benchmarks/results/gpu-peers-h100.json docs/images/gpu-h100.png

Needs the extra `bench`. The table goes to stdout.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FLOORS = {
    "single_128_256": 1.25,
    "sharegpt_1000": 14.8,
    "in512_out512_x512": 21.0,
    "prefill_4096_out8_x64": 5.4,
    "prefix_16x32": 5.3,
}
"""Seconds that the steps' products (cuBLASLt, measured in graphs) and attention (FA3) take at least, on such a card;
`prefix_16x32` with each shared page read once, one stream's weights read at 3.1 TB/s."""
COLORS = {"Octavo": "#2a6f97", "vLLM": "#b8b8b8"}


def rows(offline: dict[str, Any]) -> list[tuple[str, float, float, float | None]]:
    """(name, Octavo's seconds, vLLM's, floor) of each workload, and of the start, counted from the processes' own."""
    ours, theirs = offline["octavo"], offline["vllm"]
    out: list[tuple[str, float, float, float | None]] = [
        (name, ours[name]["s"], theirs[name]["s"], floor) for name, floor in FLOORS.items() if name in ours
    ]
    if "process_to_ready_s" in ours:
        out.append(("start to ready", ours["process_to_ready_s"], theirs["startup_s"], None))
    return out


def table(offline: dict[str, Any]) -> str:
    version = offline["vllm"]["vllm"]
    lines = [
        f"| workload | Octavo | vLLM {version} | floor | vLLM / Octavo | Octavo / floor |",
        "|---|---|---|---|---|---|",
    ]
    for name, ours, theirs, floor in rows(offline):
        bound, share = ("", "") if floor is None else (f"{floor:.2f} s", f"{ours / floor:.2f}")
        label = f"`{name}`" if floor else name
        lines.append(f"| {label} | {ours:.2f} s | {theirs:.2f} s | {bound} | {theirs / ours:.2f} | {share} |")
    return "\n".join(lines)


def plot(record: dict[str, Any], path: Path) -> None:
    """Two bars a workload, and a line for the floor."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entries = rows(record["offline"])
    figure, axes = plt.subplots(1, len(entries), figsize=(13, 3.4), constrained_layout=True)
    for axis, (name, ours, theirs, floor) in zip(axes, entries, strict=True):
        bars = axis.bar(list(COLORS), [ours, theirs], color=list(COLORS.values()), width=0.62)
        axis.bar_label(bars, [f"{ours:.2f}", f"{theirs:.2f}"], padding=2, fontsize=9)
        if floor is not None:
            axis.axhline(floor, color="#c1121f", linewidth=1, linestyle="--")
            axis.text(1.36, floor, f"floor {floor:.2f}", color="#c1121f", fontsize=7, ha="right", va="bottom")
        axis.set_title(f"{name}\nseconds", fontsize=9)
        axis.set_xlabel(f"{theirs / ours:.2f}×", fontsize=12, fontweight="bold", color=COLORS["Octavo"])
        axis.set_ylim(0, max(ours, theirs) * 1.18)
        axis.set_yticks([])
        axis.tick_params(axis="x", length=0, labelsize=9)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    figure.suptitle(f"Llama 3.1 8B's shape, bfloat16, random weights, {record['device']}; less is better", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    record = json.loads(Path(sys.argv[1]).read_text())
    print(table(record["offline"]))
    plot(record, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
