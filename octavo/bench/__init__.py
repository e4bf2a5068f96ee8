"""Workloads and measurements: offline throughput and latency, and any OpenAI-compatible server under load."""
