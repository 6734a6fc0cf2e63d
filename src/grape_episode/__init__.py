"""What an episode is: actions, contract, outcome, bags, labels; and the recorder node."""
