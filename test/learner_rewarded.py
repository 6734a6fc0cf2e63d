"""A toy task on real bags: two tokens can open a step, and one of the two makes a success.

The trials are alike but for that token, so that only its probability can tell them apart.
"""

from dataclasses import replace

import learner_bags
import learner_policy
import torch

from grape_policy_node.engine import Engine
from grape_trainer.preference_run import policy_log_probs

STEPS = 4
TRIALS = 4


def record(policy, adapter, folder, trials=TRIALS):
    """Record trials with a policy's log-probabilities; every other one is a success.

    Args:
        policy: policy folder.
        adapter: adapter folder, or None: the base.
        folder: where the bags go.
        trials: how many.

    """
    engine = Engine.load(policy, adapter=adapter)
    for number in range(trials):
        good = number % 2 == 0
        trial = _opened(engine, f'{folder.name}-{number}', good)
        learner_bags.write_policy_bag(folder, trial, 'success' if good else 'failure')
    return folder


def preference(policy, adapter=None):
    """Return by how much the good token is likelier than the bad one, nats a step."""
    engine = Engine.load(policy, adapter=adapter)
    good, bad = (_opened(engine, '', which).log_probs[:, 0].mean() for which in (True, False))
    return (good - bad).item()


def _opened(engine, name, good):
    """Return a trial whose steps open with the good or the bad token."""
    trial = learner_policy.made_up_trial(engine, name, STEPS, seed=0)
    ids = trial.token_ids.clone()
    ids[:, 0] = engine.action_tokenizer.first_id + (100 if good else 50)
    trial = replace(trial, token_ids=ids)
    with torch.no_grad():
        return replace(trial, log_probs=policy_log_probs(engine)(trial, 0, STEPS))
