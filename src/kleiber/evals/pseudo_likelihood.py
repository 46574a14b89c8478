"""Pseudo-log-likelihoods of texts under a masked model, which take the place of log-likelihoods."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from kleiber.evals.likelihood import Ids, target_scores
from kleiber.records.progress import activity
from kleiber.types.batch import Batch
from kleiber.types.model import Model, device_of, evaluation_mode
from kleiber.types.tokenizer import Tokenizer


@torch.compiler.set_stance("force_eager")
@torch.inference_mode()
def pseudo_log_likelihoods(
    model: Model,
    texts: Sequence[Ids],
    tokenizer: Tokenizer,
    tokens: int,
    label: str,
    positions: Sequence[Sequence[int]] | None = None,
) -> Float[np.ndarray, "rows"]:
    """sum_t log p(x_t | all other tokens of the text) in nats, of each text, under a masked model.

    Each token is hidden once, in a copy of its text. The tokens that separate documents stand around a text, and are
    not scored. Of a longer text than model.context, a copy contains what is around the hidden token. Salazar et al.
    2020, arXiv:1910.14659, eq. 1. Arguments are those of `log_likelihoods`.

    positions  of the tokens of each text that are scored; None for all of them
    """
    before, after = tokenizer.separator.before, tokenizer.separator.after
    start, end = ([] if i is None else [i] for i in (before, after))
    device = device_of(model)
    rows = [start + ids + end for ids in texts]
    widths = [min(len(row), model.context) for row in rows]
    scored = [range(len(ids)) for ids in texts] if positions is None else positions
    copies = [(i, at) for i in sorted(range(len(rows)), key=lambda i: -widths[i]) for at in scored[i]]
    scores, done = np.zeros(len(texts)), 0
    with evaluation_mode(model), activity(label, len(copies), "tokens") as work:
        while done < len(copies):
            longest = widths[copies[done][0]]
            chosen = copies[done : done + max(1, tokens // longest)]
            ids, real = np.full((len(chosen), longest), tokenizer.mask), np.zeros((len(chosen), longest), bool)
            hidden_at, targets = [], []
            for copy, (i, number) in enumerate(chosen):
                at, width = number + len(start), widths[i]
                first = min(max(0, at - width // 2), len(rows[i]) - width)
                ids[copy, :width], real[copy, :width] = rows[i][first : first + width], True
                hidden_at.append(at - first)
                targets.append(texts[i][number])
            ids[np.arange(len(chosen)), hidden_at] = tokenizer.mask
            mask = None if real.all() else torch.from_numpy(real).to(device)
            hidden = model(Batch(torch.from_numpy(ids).to(device), real=mask)).hidden
            states = hidden[torch.arange(len(chosen), device=device), torch.tensor(hidden_at, device=device)]
            log_probs, _ = target_scores(states, model.head, torch.tensor(targets, device=device))
            np.add.at(scores, [i for i, _ in chosen], log_probs.double().cpu().numpy())
            done += len(chosen)
            work.done = done
    return scores
