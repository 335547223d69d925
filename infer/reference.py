"""The oracle: log P(answer | prompt), one prompt and one answer at a time, unpadded, uncached, summed in float64.

Slow and plain on purpose; `infer.engine` is judged by it. Knows nothing of trees, batches, prefixes or masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def reference_ids(
    model: Any, prompt: Sequence[int], answer: Sequence[int], *, vocab_size: int, end_ids: Sequence[int] | None = None
) -> float:
    """log P(answer | prompt) in nats of token ids, with the mass of end_ids after it where they are given.

    prompt: the encoder's text for an encoder-decoder model. vocab_size: rows of the head that are tokens.
    """
    import torch

    was_training = model.training
    model.eval()
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            decoder = torch.tensor([[model.config.decoder_start_token_id, *answer]], device=model.device)
            text = torch.tensor([list(prompt)], device=model.device)
            logits = model(input_ids=text, decoder_input_ids=decoder).logits[0]
            first = 0
        else:
            ids = torch.tensor([[*prompt, *answer]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0]
            first = len(prompt) - 1
    model.train(was_training)
    log_probs = logits[:, :vocab_size].double().log_softmax(dim=-1)
    total = sum(float(log_probs[first + at, token]) for at, token in enumerate(answer))
    if end_ids is not None:
        known = [token for token in end_ids if token < log_probs.shape[1]]  # tokens that the head has no row for
        total += float(log_probs[first + len(answer), known].logsumexp(dim=-1))
    return total


def reference_log_probs(
    model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], *, end: str = "none"
) -> Any:
    """(N, L) float64: what answer_log_probs should return, by encoding each prompt and answer together, from scratch.

    The tokens that both encodings of a prompt share, alone and with any answer, are its context. Where that is not
    the whole prompt, probabilities are divided by that of the rest's text.
    """
    import numpy as np

    from models.answers import end_tokens
    from models.token_texts import TokenTexts

    spelt = TokenTexts(tokenizer)
    stops = {*end_tokens(tokenizer), *_stops(model)}
    ends = {"none": None, "eos": stops, "boundary": stops | set(spelt.word_starts().tolist())}[end]
    table = np.empty((len(prompts), len(answers)))
    for row, prompt in enumerate(prompts):
        context, paths, rest = _contexts(model, tokenizer, prompt, answers)
        for column, path in enumerate(paths):
            leads_on = {other[len(path)] for other in paths if len(other) > len(path) and other[: len(path)] == path}
            end_ids = None if ends is None else sorted(ends - leads_on)
            table[row, column] = reference_ids(model, context, path, vocab_size=spelt.size, end_ids=end_ids)
        if rest:
            table[row] -= _log_prob_of_text(model, context, rest, paths, spelt)
    return table


def _log_prob_of_text(model: Any, context: list[int], rest: list[int], paths: list[list[int]], spelt: Any) -> float:
    """log P(the text of `rest` comes next), by every beginning of the known paths that a next token can complete."""
    import numpy as np

    wanted = b"".join(spelt.texts[token] for token in rest)
    total = -np.inf
    for begun in {tuple(path[:depth]) for path in (rest, *paths) for depth in range(len(path))}:
        text = b"".join(spelt.texts[token] for token in begun)
        if len(text) < len(wanted) and wanted.startswith(text):
            goes_on = spelt.starting_with(wanted[len(text) :]).tolist()
            found = reference_ids(model, context, begun, vocab_size=spelt.size, end_ids=goes_on)
            total = np.logaddexp(total, found)
    return float(total)


def _contexts(
    model: Any, tokenizer: Any, prompt: str, answers: Sequence[str]
) -> tuple[list[int], list[list[int]], list[int]]:
    """(ids that every encoding begins with, each answer's ids after them, the prompt's own ids after them)."""
    if model.config.is_encoder_decoder:
        return (
            tokenizer(prompt)["input_ids"],
            [tokenizer(a, add_special_tokens=False)["input_ids"] for a in answers],
            [],
        )
    bare = prompt.rstrip(" ")
    own = tokenizer(bare)["input_ids"]
    joint = [tokenizer(prompt + answer)["input_ids"] for answer in answers]
    if own[:1] == own[1:2] == [tokenizer.bos_token_id]:  # the prompt wrote the beginning-of-text token itself
        own, joint = own[1:], [ids[1:] for ids in joint]
    same = min(sum(1 for _ in _shared(own, ids)) for ids in joint)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    context = own[:same] or [start]  # nothing to stand on: the beginning of a text, or the end of the one before
    return context, [ids[same:] for ids in joint], own[same:]


def _shared(one: Sequence[int], other: Sequence[int]) -> Any:
    for a, b in zip(one, other, strict=False):
        if a != b:
            return
        yield a


def _stops(model: Any) -> list[int]:
    found = getattr(model.generation_config, "eos_token_id", None)
    return [] if found is None else found if isinstance(found, list) else [found]
