"""How each method turns prompts and answers into log-probabilities: (model, tokenizer, job) -> (N, L).

Each is used as its documentation says, at its best documented setting. One that cannot do a job raises CannotDo, one
whose package is missing ImportError, and INSTALL says what to install.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from soft_job import Job, encode

Method = Callable[[Any, Any, Job], np.ndarray]


class CannotDo(Exception):
    """The method has no way to do this job."""


def ours(model: Any, tokenizer: Any, job: Job, **switches: bool) -> np.ndarray:
    """This project's engine at its default budget; `switches` turns one of its ideas off."""
    from infer import answer_log_probs
    from infer.engine import Engine

    engine = Engine(model, vocab_size=len(tokenizer), **switches)
    return answer_log_probs(model, tokenizer, job.prompts, job.answers, engine=engine, progress=False)


def oracle(model: Any, tokenizer: Any, job: Job) -> np.ndarray:
    """One unpadded sequence at a time, nothing kept, sums in float64."""
    from infer.reference import reference_log_probs

    return reference_log_probs(model, tokenizer, job.prompts, job.answers)


def plain_loop(model: Any, tokenizer: Any, job: Job, *, batch: int) -> np.ndarray:
    """What one writes by hand: every prompt with every answer behind it, logits of all positions, gather, sum."""
    import torch

    result = np.zeros((len(job.prompts), len(job.answers)))
    for column, answer in enumerate(job.answers):
        for start in range(0, len(job.prompts), batch):
            prompts = job.prompts[start : start + batch]
            begins = [len(encode(tokenizer, prompt)) for prompt in prompts]
            inputs = padded(tokenizer, [prompt + answer for prompt in prompts], "right", model.device)
            with torch.no_grad():
                log_probs = model(**inputs).logits.float().log_softmax(dim=-1)  # (B, T, V)
            for row, begin in enumerate(begins):
                ids = inputs["input_ids"][row, begin : int(inputs["attention_mask"][row].sum())]
                picked = log_probs[row, begin - 1 : begin - 1 + len(ids)].gather(1, ids[:, None])
                result[start + row, column] = picked.sum().item()
    return result


def hf_generate(model: Any, tokenizer: Any, job: Job, *, batch: int) -> np.ndarray:
    """One new token with its scores; reads answers of one token only."""
    import torch

    ids = [encode(tokenizer, job.prompts[0] + answer) for answer in job.answers]
    if {len(one) for one in ids} != {len(encode(tokenizer, job.prompts[0])) + 1}:
        raise CannotDo("reads one token, the answers have several")
    columns = torch.tensor([one[-1] for one in ids], device=model.device)
    rows = []
    for start in range(0, len(job.prompts), batch):
        inputs = padded(tokenizer, job.prompts[start : start + batch], "left", model.device)
        out = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        rows.append(out.scores[0].float().log_softmax(dim=-1)[:, columns].cpu().numpy())
    return np.concatenate(rows)


def padded(tokenizer: Any, texts: list[str], side: str, device: Any) -> dict[str, Any]:
    """Ids and attention mask of the texts, padded on that side."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = side
    batch = tokenizer(texts, return_tensors="pt", padding=True).to(device)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def lm_eval(model: Any, tokenizer: Any, job: Job, *, batch: int) -> np.ndarray:
    """HFLM.loglikelihood over all pairs, as its multiple-choice tasks call it; it sorts by length itself."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    network = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    pairs = [(prompt, answer) for prompt in job.prompts for answer in job.answers]
    requests = [Instance("loglikelihood", {}, pair, at) for at, pair in enumerate(pairs)]
    scores = network.loglikelihood(requests, disable_tqdm=True)
    return np.array([score for score, _ in scores]).reshape(len(job.prompts), len(job.answers))


def cappr(model: Any, tokenizer: Any, job: Job, *, batch: int) -> np.ndarray:
    """log_probs_conditional inside `cache`, the instruction split off by hand at a space as `cache` asks."""
    from cappr.huggingface.classify import cache, log_probs_conditional

    texts = [prompt.removeprefix(job.instruction + " ") for prompt in job.prompts]
    answers = [answer.removeprefix(" ") for answer in job.answers]  # cappr puts the space back
    with cache((model, tokenizer), job.instruction) as cached:
        tokens = log_probs_conditional(texts, answers, cached, batch_size=batch, show_progress_bar=False)
    return np.array([[sum(answer) for answer in row] for row in tokens])


def skorch(model: Any, tokenizer: Any, job: Job) -> np.ndarray:
    """ZeroShotClassifier with its cache of logits; one prompt at a time by design."""
    from skorch.llm import ZeroShotClassifier

    reader = ZeroShotClassifier(model=model, tokenizer=tokenizer, prompt="{text}", probas_sum_to_1=False)
    reader.fit(X=None, y=job.answers)
    probs = reader.predict_proba(job.prompts)
    columns = [list(reader.classes_).index(answer) for answer in job.answers]
    with np.errstate(divide="ignore"):
        return np.log(probs[:, columns])


def _batched(name: str, method: Callable[..., np.ndarray]) -> Iterator[tuple[str, Method]]:
    for batch in (8, 16):
        yield f"{name} (batch {batch})", partial(method, batch=batch)


OURS = "ours"
METHODS: dict[str, Method] = {
    OURS: ours,
    "ours without the shared prefix": partial(ours, prefix=False),
    "ours without sorting": partial(ours, sort=False),
    "ours with the head everywhere": partial(ours, head=False),
    "ours with the last block everywhere": partial(ours, trim=False),
    "ours with the prefix beside every row": partial(ours, apart=False),
    "ours without the tree": partial(ours, tree=False),
    "plain loop (batch 8)": partial(plain_loop, batch=8),
    **dict(_batched("generate", hf_generate)),
    **dict(_batched("cappr in its cache", cappr)),
    "skorch": skorch,
    **dict(_batched("lm-eval", lm_eval)),
}
MODULES = {"lm-eval": "lm_eval", "skorch": "skorch", "cappr": "cappr"}
INSTALL = {
    "lm-eval": "pip install lm-eval",
    "skorch": "pip install skorch",
    "cappr": "pip install cappr accelerate 'transformers<5' 'numpy<2'",
}


def package_of(method: str) -> str | None:
    """The package a method needs besides ours; None where it needs none."""
    return next((name for name in INSTALL if method.startswith(name)), None)
