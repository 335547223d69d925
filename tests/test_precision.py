"""Precision is decided by compute capability alone; a build without code for the card is refused."""

from __future__ import annotations

import pytest

from models.precision import TORCH_NAMES, check_build, own_device, resolve_precision


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


@pytest.mark.parametrize(("asked", "capability"), [("fp16", None), ("bf16", (7, 5)), ("int8", None)])
def test_a_refusal_names_the_setting_that_asked(asked: str, capability: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match=rf"engine\.precision='?{asked}"):
        resolve_precision(asked, capability, "engine.precision")


def test_every_precision_is_a_number_format_of_torch() -> None:
    import torch

    assert {getattr(torch, name).itemsize for name in TORCH_NAMES.values()} == {2, 4}


@pytest.mark.parametrize(
    ("rank", "gpus", "device"),
    [(None, 4, "cuda:2"), ("1", 4, "cuda:1"), ("3", 1, "cuda:0"), ("1", 0, "cpu")],
)
def test_each_process_of_a_launch_takes_its_own_gpu(
    rank: str | None, gpus: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 2)  # as somebody chose it in a notebook
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert own_device() == device
    assert [f"cuda:{index}" for index in taken] == [device] * (gpus > 0)


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
