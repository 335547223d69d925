"""Precision is decided by compute capability alone; a build without code for the card is refused."""

from __future__ import annotations

import pytest

from models.precision import check_build, resolve_precision


@pytest.mark.parametrize(
    ("asked", "capability", "resolved"),
    [
        ("auto", None, "fp32"),
        ("bf16", None, "bf16"),
        ("auto", (6, 0), "fp16"),
        ("auto", (7, 5), "fp16"),
        ("auto", (9, 0), "fp16"),
        ("bf16", (8, 0), "bf16"),
        ("fp32", (6, 0), "fp32"),
    ],
)
def test_precision_follows_the_device(asked: str, capability: tuple[int, int] | None, resolved: str) -> None:
    assert resolve_precision(asked, capability) == resolved


@pytest.mark.parametrize("capability", [(6, 0), (7, 0), (7, 5)])
def test_bf16_is_refused_where_it_would_be_emulated(capability: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"sm_80.*trainer\.precision=fp16"):
        resolve_precision("bf16", capability)


def test_fp16_on_a_cpu_is_refused_since_it_would_be_ignored() -> None:
    with pytest.raises(ValueError, match="ignored"):
        resolve_precision("fp16", None)


def test_a_gpu_older_than_pascal_is_refused() -> None:
    with pytest.raises(ValueError, match="sm_60"):
        resolve_precision("auto", (5, 2))


CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "built_for"),
    [((6, 0), CU126), ((6, 1), CU126), ((7, 5), CU130), ((8, 9), CU130), ((9, 0), CU130), ((12, 1), CU130),
     ((8, 0), ["compute_70"])],
)  # fmt: skip
def test_a_build_with_code_for_the_card_is_taken(capability: tuple[int, int], built_for: list[str]) -> None:
    check_build(capability, built_for, "2.13")


@pytest.mark.parametrize("capability", [(6, 0), (7, 0)])
def test_a_build_without_code_for_the_card_names_the_right_index(capability: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cu126"):
        check_build(capability, CU130, "2.13")
