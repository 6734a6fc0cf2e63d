"""Objectives: pure functions from log-probabilities to (loss, metrics)."""
