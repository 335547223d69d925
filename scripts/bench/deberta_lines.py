"""What the attention benchmark says of a tier on a batch, and what its figures are over eager's. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Line:
    """One tier on one batch. step_x, predict_x: eager's seconds over these; peak_x: this peak over eager's.

    difference: of logits from eager's, the largest. together: the tiers were timed in turns; false where not all of
    them fit side by side. cannot: why a figure, or all of them, is not there.
    """

    lengths: str
    rows: int
    tier: str
    step_s: float | None = None
    step_x: float | None = None
    predict_s: float | None = None
    predict_x: float | None = None
    peak_mib: float | None = None
    peak_x: float | None = None
    matmul_share: float | None = None
    difference: float | None = None
    largest_rows: int | None = None
    together: bool | None = None
    cannot: str | None = None


def over(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def against_eager(lines: list[Line]) -> list[Line]:
    """The lines of one batch with their ratios to eager's, where both have the figure."""
    eager = next((one for one in lines if one.tier == "eager"), None)
    if eager is None:
        return lines
    return [
        replace(
            one, step_x=over(eager.step_s, one.step_s), predict_x=over(eager.predict_s, one.predict_s),
            peak_x=over(one.peak_mib, eager.peak_mib),
        )
        for one in lines
    ]  # fmt: skip
