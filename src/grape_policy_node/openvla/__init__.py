"""The OpenVLA model: vision towers, language model, inputs and checkpoint folders."""
