"""Networks: policy, critic, reward and reference models, LoRA, batching and token log-probs. torch, transformers, peft."""
