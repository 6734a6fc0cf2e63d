"""The grape command line and what it starts: nodes, demo, doctor."""
