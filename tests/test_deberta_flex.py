"""The compiled form of DeBERTa's flex tier, as far as a CPU shows it: which graphs torch makes."""

from __future__ import annotations

import functools

import pytest
import torch
from test_deberta_attention import network, padding, read, states

from models import deberta_flex


@pytest.mark.slow
def test_flex_is_compiled_for_every_network_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's limit is eight graphs of a function; past it the kernel would run unfused, with all scores in memory.

    On a CPU the graphs run as they were traced, and are counted.
    """
    from torch.nn.attention import flex_attention

    graphs, unfused = [], []
    compile_ = torch.compile
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_attention, "_warn_once", lambda *_, **__: unfused.append(1))
    monkeypatch.setattr(
        torch, "compile",
        lambda work, **named: compile_(work, **named, backend=lambda graph, _: graphs.append(1) or graph.forward),
    )  # fmt: skip
    kernel = functools.cache(deberta_flex._kernel.__wrapped__)
    monkeypatch.setattr(deberta_flex, "_kernel", lambda device, *kind: kernel("cuda", *kind))
    for heads in (2, 3, 4):
        model, counted = network(dtype=torch.float32, hidden_size=8 * heads, num_attention_heads=heads), len(graphs)
        for lengths in ((20,), (130, 40), (300, 20, 60), (200, 200), (400,)):
            read(model, "flex", padding(*lengths))
            with torch.inference_mode():
                states(model, "flex", padding(*lengths))
        assert 0 < len(graphs) - counted <= 6 and not unfused, heads
