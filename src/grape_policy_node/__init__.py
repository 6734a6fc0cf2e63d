"""The policy: OpenVLA, action tokens, LoRA adapters, inference; and the policy node."""
