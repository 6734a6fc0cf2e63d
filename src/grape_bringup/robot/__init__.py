"""The robot workstation: guard, arm and gripper outputs, cameras, trials."""
