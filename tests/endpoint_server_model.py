"""Replies of a real model for `endpoint_server.serving`: chat completions by plain transformers, one token at a time.

Nothing of the project's engine or generation is used, so that a test which compares the two compares two roads.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import torch
from endpoint_server import Reply


class ModelReplies:
    """reply(number, content) of one model and tokenizer, greedy at temperature 0, else drawn with the request's seed.

    Takes messages, max_tokens, stop, temperature, seed, logprobs and top_logprobs. A request asked again is answered
    from memory, so faults before it cost no time.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._lock, self._made = threading.Lock(), dict[str, Reply]()

    def __call__(self, number: int, content: dict[str, Any]) -> Reply:
        key = json.dumps(content, sort_keys=True)
        with self._lock:
            if key not in self._made:
                self._made[key] = self._reply(content)
            return self._made[key]

    def _reply(self, content: dict[str, Any]) -> Reply:
        prompt = self.tokenizer.apply_chat_template(content["messages"], tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        text, tokens, finish = self._write(ids, content)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        choice["logprobs"] = {"content": tokens} if content.get("logprobs") else None
        return Reply(body=json.dumps({"id": "1", "model": content["model"], "choices": [choice]}))

    def _write(self, ids: torch.Tensor, content: dict[str, Any]) -> tuple[str, list[dict[str, Any]], str]:
        """(text, a token's log-probability and the likeliest in its place, why it ended)."""
        stops, heat = content.get("stop") or [], content.get("temperature", 1.0)
        drawn = torch.Generator().manual_seed(content.get("seed") or 0)
        ends = {self.tokenizer.eos_token_id}
        cache, own, tokens, text = None, list[int](), list[dict[str, Any]](), ""
        for _ in range(content["max_tokens"]):
            with torch.no_grad():
                out = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, log_probs = out.past_key_values, out.logits[0, -1].double().log_softmax(-1)
            drawing = (log_probs / heat).softmax(-1) if heat else None
            chosen = int(log_probs.argmax() if drawing is None else torch.multinomial(drawing, 1, generator=drawn))
            top = log_probs.topk(content.get("top_logprobs") or 1).indices.tolist()
            tokens.append(self._told(chosen, log_probs) | {"top_logprobs": [self._told(at, log_probs) for at in top]})
            if chosen in ends:
                return text, tokens, "stop"
            own.append(chosen)
            text = self.tokenizer.decode(own, skip_special_tokens=True)
            if found := [text.find(stop) for stop in stops if stop in text]:
                return text[: min(found)], tokens, "stop"
            ids = torch.tensor([[chosen]])
        return text, tokens, "length"

    def _told(self, token: int, log_probs: torch.Tensor) -> dict[str, Any]:
        return {"token": self.tokenizer.decode([token]), "logprob": float(log_probs[token])}
