"""Supervised fine-tuning: the negative log-likelihood of the demonstrated action tokens.

    L_SFT = -(1 / N) sum_i log pi(o_i | s_i)

over the N action tokens of a batch. It makes the policy that GRAPE starts from, and is the anchor
that TPO may add on the chosen trials.
"""

from __future__ import annotations

import torch


def sft_loss(
    log_probs: torch.Tensor, predicted_ids: torch.Tensor | None, token_ids: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean negative log-likelihood a token.

    Args:
        log_probs: (B, A) float32 log-probabilities of `token_ids`, full vocabulary.
        predicted_ids: (B, A) int64 most likely ids under teacher forcing; None skips accuracy.
        token_ids: (B, A) int64 demonstrated ids.

    Returns:
        The scalar loss and the metrics loss (nats a token) and, with predictions,
        accuracy/token (all A tokens) and accuracy/step (every token of a step right).

    Raises:
        ValueError: shapes differ.

    """
    if log_probs.shape != token_ids.shape:
        raise ValueError(
            f'log_probs is {tuple(log_probs.shape)} and token_ids {tuple(token_ids.shape)}; '
            'expected the same (B, A).'
        )
    loss = -log_probs.mean()
    metrics = {'loss': loss.item()}
    if predicted_ids is not None:
        right = predicted_ids == token_ids
        metrics['accuracy/token'] = right.float().mean().item()
        metrics['accuracy/step'] = right.all(dim=-1).float().mean().item()
    return loss, metrics
