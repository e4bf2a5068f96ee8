"""`octavo bench`: its three measurements, each in a file of its own."""

from __future__ import annotations

from octavo.cli.verbs import VerbGroup

bench = VerbGroup(
    "bench",
    {
        "throughput": ("octavo.cli.bench_throughput:throughput", "Tokens a second of an engine in this process."),
        "latency": ("octavo.cli.bench_latency:latency", "Time of one batch of equal requests."),
        "serve": ("octavo.cli.bench_serve:serve", "What clients of a running server see under load."),
    },
    help="Measure throughput, latency, or a server under load.",
)
