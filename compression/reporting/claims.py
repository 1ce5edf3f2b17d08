"""Common claims about the kinds of compression, checked against measured runs.

A claim says how many times smaller and faster a model becomes, and which share of its quality it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compression.tracking import RunRecord

UNCHANGED_MACS = 0.99  # from this share on, a pruned model counts as unstructured: it has zeros, and all its shapes


@dataclass(frozen=True)
class Claim:
    """What a kind of compression is said to reach at least; None where nothing is said."""

    kind: str
    applies_to: Callable[[RunRecord], bool]
    compression_ratio: float
    speedup: float | None
    kept: float  # share of the baseline's quality
    gzipped: bool = False  # compare the gzipped files: in the plain ones zeros take as many bytes as other weights


@dataclass(frozen=True)
class ClaimCheck:
    """A claim and the run that comes nearest to it: the one that meets most of its parts, then keeps the most."""

    claim: Claim
    run: RunRecord | None
    compression_ratio: float = 0.0
    speedup: float = 0.0
    kept: float = 0.0

    @property
    def parts(self) -> dict[str, tuple[str, str, bool]]:
        """Each part of the claim: what is claimed, what was measured, and whether it holds."""
        claim, ratio = self.claim, self.compression_ratio
        parts = {"smaller": (f"{claim.compression_ratio:g}×", f"{ratio:.2f}×", ratio >= claim.compression_ratio)}
        if claim.speedup:
            parts["faster"] = (f"{claim.speedup:g}×", f"{self.speedup:.2f}×", self.speedup >= claim.speedup)
        return parts | {"kept": (f"{claim.kept:.0%}", f"{self.kept:.1%}", self.kept >= claim.kept)}

    @property
    def is_met(self) -> bool:
        """Whether the run meets all parts at once."""
        return self.run is not None and all(holds for _, _, holds in self.parts.values())


def quantizes_to(bits: int) -> Callable[[RunRecord], bool]:
    """A predicate for runs of one quantizer with weights of so many bits."""
    return lambda run: run.tags.get("family") == "quantize" and run.params.get("bits") == str(bits)


def prunes_structures(run: RunRecord) -> bool:
    """Whether the run pruned whole channels, heads or layers: the model needs fewer MACs."""
    return run.tags.get("family") == "prune" and run.metrics.get("macs_ratio", 1.0) < UNCHANGED_MACS


def prunes_weights(run: RunRecord) -> bool:
    """Whether the run pruned single weights: all shapes stay."""
    return run.tags.get("family") == "prune" and not prunes_structures(run)


CLAIMS = (
    Claim("int8 quantization", quantizes_to(8), compression_ratio=4, speedup=2, kept=0.98),
    Claim("int4 quantization", quantizes_to(4), compression_ratio=8, speedup=None, kept=0.95),
    Claim("structured pruning", prunes_structures, compression_ratio=2, speedup=1.5, kept=0.95),
    Claim("unstructured pruning", prunes_weights, compression_ratio=2, speedup=None, kept=0.90, gzipped=True),
    Claim(
        "distillation",
        lambda run: run.tags.get("family") == "distill",
        compression_ratio=3,
        speedup=3,
        kept=0.95,
    ),
)


def check_claims(runs: Sequence[RunRecord], metric: str) -> list[ClaimCheck]:
    """Check every claim against `runs`, whose quality is `metric`."""
    return [check_claim(claim, [run for run in runs if claim.applies_to(run)], metric) for claim in CLAIMS]


def check_claim(claim: Claim, runs: Sequence[RunRecord], metric: str) -> ClaimCheck:
    """Check a claim against `runs`, all of its kind; the check has no run if there are none."""
    checks = [_check_run(claim, run, metric) for run in runs]
    return max(
        checks,
        key=lambda check: (sum(holds for _, _, holds in check.parts.values()), check.kept),
        default=ClaimCheck(claim, None),
    )


def _check_run(claim: Claim, run: RunRecord, metric: str) -> ClaimCheck:
    metrics = run.metrics
    ratio = metrics.get("compression_ratio", 0.0)
    if claim.gzipped and metrics.get("size_mb_compressed"):
        ratio = metrics["size_mb_compressed_before"] / metrics["size_mb_compressed"]
    return ClaimCheck(claim, run, ratio, metrics.get("speedup", 0.0), metrics.get(f"{metric}_kept", 0.0))
