"""The tables of the QLoRA benchmark as GitHub Markdown, made of what it found. Measures nothing."""

from __future__ import annotations

from typing import Any

from cards import tensor_gib
from qlora_arithmetic import CONTEXT_GIB, GIB, ROADS, adapter_weights, linear_bytes, parts
from soft_model import Shape


def tables(found: dict[str, Any]) -> list[str]:
    """The lines: what ran where, the model's weights, the steps, and the labelling."""
    lines = [headline(found), "", *weight_lines(found)]
    if found["cells"]:
        lines += ["", *step_lines(found), "", *part_lines(found)]
    return lines + (["", *label_lines(found["label"])] if found["label"] else [])


def headline(found: dict[str, Any]) -> str:
    setup, shape = found["setup"], found["setup"]["shape"]
    size = f"{shape['layers']} layers, {shape['hidden']}, {shape['intermediate']}, {shape['kv_heads']} KV heads"
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items() if number)
    cap = ""
    if (card := setup["memory_gib"]) is not None:
        cap = f" For a card of {card:g} GiB, {tensor_gib(card, setup['device']):g} of them for tensors."
    return (
        f"Llama of {size}, vocabulary {shape['vocab']:,}; {setup['quantization']}, {setup['precision']}, r "
        f"{setup['rank']} on all linear layers. {found['hardware']}.{cap} {packages}, commit {found['commit']}."
    )


def weight_lines(found: dict[str, Any]) -> list[str]:
    """The model as it stands before a step, beside the arithmetic."""
    shape = Shape(**found["setup"]["shape"])
    lines = []
    for road in found["roads"]:
        weights = f"layers {road['layer_bytes'] / GIB:.3f} GiB"
        if found["setup"]["quantization"] == "nf4":
            weights += f" (their 4-bit matrices by arithmetic {linear_bytes(shape) / GIB:.3f})"
        weights += f", embedding and head {road['other_bytes'] / GIB:.3f}"
        weights += f"; {road['build_peak_gib']:.2f} GiB at most while they were made"
        trained = adapter_weights(shape, found["setup"]["rank"])
        weights += f"; {road['trained_weights']:,} weights trained (arithmetic {trained:,})"
        lines.append(f"* {road['road']}: {weights}. Memory is the {road['memory_is']}.")
    return lines


def step_lines(found: dict[str, Any]) -> list[str]:
    """A line for each size: peak beside arithmetic and rows/s of every road."""
    roads = list(dict.fromkeys(cell["road"] for cell in found["cells"]))
    heads = [f"{road}: peak GiB (arithmetic) | rows/s" for road in roads]
    lines = ["| T | B | " + " | ".join(heads) + " |", "| --- " * (2 + 2 * len(roads)) + "|"]
    cells = {(cell["length"], cell["rows"], cell["road"]): cell for cell in found["cells"]}
    for length, rows in dict.fromkeys((cell["length"], cell["rows"]) for cell in found["cells"]):
        known = [cells.get((length, rows, road)) for road in roads]
        # A run that is not at its end, or was ended, has no cell yet for the last sizes of its last road.
        filled = [step_cell(one, found["setup"]["memory_gib"]) if one else "not measured | " for one in known]
        lines.append(f"| {length} | {rows} | " + " | ".join(filled) + " |")
    return lines


def step_cell(cell: dict[str, Any], memory_gib: float | None) -> str:
    least, most = cell["expected_gib"]
    should = f"({least:.2f} to {most:.2f})"
    if cell.get("cannot"):
        return f"{cell['cannot']} {should} | "
    beyond = "" if cell["fits"] is not False else f", over {memory_gib:g}"
    return f"{cell['peak_gib']:.2f} {should}{beyond} | {cell['rows_per_s']:.2f}"


def part_lines(found: dict[str, Any]) -> list[str]:
    """The arithmetic of the largest size, part by part."""
    setup = found["setup"]
    shape, last = Shape(**setup["shape"]), max(found["cells"], key=lambda cell: cell["length"] * cell["rows"])
    rows, length = last["rows"], last["length"]
    roads = list(dict.fromkeys(cell["road"] for cell in found["cells"]))
    ranges = [
        parts(
            shape, rows, length, setup["rank"], ROADS[road], width=4 if setup["precision"] == "fp32" else 2,
            four_bit=setup["quantization"] == "nf4", on_gpu=False,
        )
        for road in roads
    ]  # fmt: skip
    lines = [f"| arithmetic at T {length}, B {rows}, GiB | " + " | ".join(roads) + " |"]
    lines.append("| --- " * (1 + len(roads)) + "|")
    for part in ranges[0]:
        lines.append(f"| {part} | " + " | ".join(between(*one[part]) for one in ranges) + " |")
    if setup["device"] == "cuda":
        outside = [cell["outside_gib"] for cell in found["cells"] if cell.get("outside_gib") is not None]
        seen = f", {max(outside):.2f} measured" if outside else ""
        lines += ["", f"Beside the allocator: CUDA's context, {CONTEXT_GIB[0]} to {CONTEXT_GIB[1]} GiB{seen}."]
    return lines


def between(least: float, most: float) -> str:
    return f"{least:.2f}" if f"{least:.2f}" == f"{most:.2f}" else f"{least:.2f} to {most:.2f}"


def label_lines(label: list[dict[str, Any]]) -> list[str]:
    """Rows labelled per second, each way beside the chain of thought."""
    ways = [line for line in label if "way" in line]
    lines = ["| labelling | rows/s | x the chain of thought | peak GiB |", "| --- | --- | --- | --- |"]
    slow = ways[-1] if ways and ways[-1]["written"] else None
    for line in ways:
        if line["cannot"]:
            lines.append(f"| {line['way']} | {line['cannot']} | | |")
            continue
        ratio = f"{line['rows_per_s'] / slow['rows_per_s']:.1f}" if slow else "-"
        written = f" ({line['written']:.0f} tokens)" if line["written"] else ""
        lines.append(f"| {line['way']}{written} | {line['rows_per_s']:.2f} | {ratio} | {line['peak_gib']:.2f} |")
    lines += [f"| labelling | {line['cannot']} | | |" for line in label if "way" not in line]
    if ways:
        one = ways[0]
        lines += [
            "",
            f"{one['rows']} rows of {one['prompt_tokens']:.0f} tokens, {one['shared_tokens']} of them shared.",
        ]
    return lines
