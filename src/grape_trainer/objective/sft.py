"""Supervised fine-tuning: the negative log-likelihood of the demonstrated action tokens.

    L_SFT = -(1 / N) sum_i log pi(o_i | s_i)

over the N action tokens of a batch. It makes the policy that GRAPE starts from, and is the anchor
that TPO may add on the chosen trials.

Cross-entropy does not know that bin 100 is next to bin 101. A policy that is trained from random
weights on few demonstrations learns faster when each target is spread over its neighbours; that
is `smoothed_target_loss`, an option of this project, not the paper's.
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


def smoothed_target_loss(
    action_log_probs: torch.Tensor, bins: torch.Tensor, sigma_bins: float
) -> torch.Tensor:
    """Mean cross-entropy to targets spread over the neighbouring bins, a scalar.

    Args:
        action_log_probs: (B, A, K) float32 log-probabilities of the K action ids, in order.
        bins: (B, A) int64 demonstrated position in that order, 0..K-1.
        sigma_bins: standard deviation of the Gaussian weights, in bins; above 0.

    Raises:
        ValueError: sigma_bins is not above 0.

    """
    if not sigma_bins > 0:
        raise ValueError(f'sigma_bins is {sigma_bins}; expected above 0.')
    places = torch.arange(action_log_probs.shape[-1], device=bins.device)
    distance = (places - bins[..., None]) / sigma_bins
    weights = torch.softmax(-0.5 * distance.square(), dim=-1)
    return -(weights * action_log_probs).sum(-1).mean()
