"""The loops: SFT, reward model and PPO over one distributed learner; run folders, checkpoints, callbacks."""
