"""What is usually claimed of the kinds of compression, held against runs.

The figures are those of the usual matrix: how many times smaller and faster, and which share of the quality is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compression.tracking import RunRecord


@dataclass(frozen=True)
class Claim:
    """A kind of compression, and what it is said to reach at least; None where nothing is said."""

    kind: str
    belongs: Callable[[RunRecord], bool]
    smaller: float
    faster: float | None
    kept: float
    zipped: bool = False  # smaller when compressed: zeros take as much room as other numbers


@dataclass(frozen=True)
class Finding:
    """A claim beside the run that comes nearest to it: the one that meets most of its parts, then keeps the most."""

    claim: Claim
    run: RunRecord | None
    smaller: float = 0.0
    faster: float = 0.0
    kept: float = 0.0

    @property
    def parts(self) -> dict[str, tuple[str, str, bool]]:
        """What is said, what was measured, and whether it holds, of each part of the claim."""
        claim = self.claim
        said = {"smaller": (f"{claim.smaller:g}×", f"{self.smaller:.2f}×", self.smaller >= claim.smaller)}
        if claim.faster:
            said["faster"] = (f"{claim.faster:g}×", f"{self.faster:.2f}×", self.faster >= claim.faster)
        return said | {"kept": (f"{claim.kept:.0%}", f"{self.kept:.1%}", self.kept >= claim.kept)}

    @property
    def met(self) -> bool:
        return self.run is not None and all(holds for _, _, holds in self.parts.values())


def bits(wanted: int) -> Callable[[RunRecord], bool]:
    """Runs of one quantizer with weights of so many bits."""
    return lambda run: run.tags.get("family") == "quantize" and run.params.get("bits") == str(wanted)


def shrinks(run: RunRecord) -> bool:
    return run.tags.get("family") == "prune" and run.metrics.get("macs_ratio", 1.0) < 0.99


def only_zeros(run: RunRecord) -> bool:
    return run.tags.get("family") == "prune" and not shrinks(run)


CLAIMS = (
    Claim("int8 quantization", bits(8), smaller=4, faster=2, kept=0.98),
    Claim("int4 quantization", bits(4), smaller=8, faster=None, kept=0.95),
    Claim("structured pruning", shrinks, smaller=2, faster=1.5, kept=0.95),
    Claim("unstructured pruning", only_zeros, smaller=2, faster=None, kept=0.90, zipped=True),
    Claim("distillation", lambda run: run.tags.get("family") == "distill", smaller=3, faster=3, kept=0.95),
)


def findings(runs: Sequence[RunRecord], metric: str) -> list[Finding]:
    """Every claim, with what these runs say of it."""
    return [finding(claim, [run for run in runs if claim.belongs(run)], metric) for claim in CLAIMS]


def finding(claim: Claim, runs: Sequence[RunRecord], metric: str) -> Finding:
    found = [_measured(claim, run, metric) for run in runs]
    none = Finding(claim, None)
    return max(found, key=lambda f: (sum(holds for _, _, holds in f.parts.values()), f.kept), default=none)


def _measured(claim: Claim, run: RunRecord, metric: str) -> Finding:
    figures = run.metrics
    smaller = figures.get("compression_ratio", 0.0)
    if claim.zipped and figures.get("size_mb_compressed"):
        smaller = figures["size_mb_compressed_before"] / figures["size_mb_compressed"]
    return Finding(claim, run, smaller, figures.get("speedup", 0.0), figures.get(f"{metric}_kept", 0.0))
