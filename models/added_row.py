"""The one row of a frozen embedding that trains: of a token that the tokenizer was given beside the pretrained ones.

DeBERTa-v3's and BERT's tokenizers know no line break (models.tasks.tokens.keep_newlines); what the network has at the
new token's id was never trained. Knows weights and token ids, never a text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LINE_BREAK = "\n"


class EmbeddingWithRow(nn.Embedding):
    """A frozen embedding whose row `token` is a parameter of its own, `row` (1, H); `weight` keeps what it was.

    So neither gradients nor an optimizer's state exist for the other rows.
    """

    def __init__(self, table: nn.Embedding, token: int) -> None:
        rows, size = table.weight.shape
        super().__init__(rows, size, padding_idx=table.padding_idx, _weight=table.weight, _freeze=True)
        self.token = token
        self.row = nn.Parameter(table.weight[token : token + 1].detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        """(..., H) of token ids (...)."""
        found = F.embedding(input, self.weight, self.padding_idx)
        return torch.where((input == self.token).unsqueeze(-1), self.row, found)


def train_line_break(encoder: Any, tokenizer: Any) -> bool:
    """Let the line break's row train where the embedding is frozen and the token was added; whether it does."""
    token = tokenizer.get_added_vocab().get(LINE_BREAK)
    table = encoder.get_input_embeddings()
    if token is None or table.weight.requires_grad:
        return False
    encoder.set_input_embeddings(EmbeddingWithRow(table, token))
    return True


def whole_tables(encoder: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with every such row at its place in the table, as an ordinary embedding has it."""
    state = dict(state)
    for name, module in encoder.named_modules():
        if isinstance(module, EmbeddingWithRow):
            table = state[f"{name}.weight"].clone()
            table[module.token] = state.pop(f"{name}.row")[0]
            state[f"{name}.weight"] = table
    return state
