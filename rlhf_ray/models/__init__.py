"""Networks: policy, critic, reward and reference models, LoRA, batching, token log-probs. torch, transformers, peft."""
