"""Scoring, pairing, objectives, learning and evaluation; and the trainer node."""
