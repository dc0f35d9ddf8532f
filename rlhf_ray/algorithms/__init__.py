"""The mathematics: advantages, KL, losses, schedules. Pure functions of torch tensors; knows no model, Ray or vLLM.

Conventions, stated here once:

- Token tensors are float32 `[batch, time]`. Time counts response tokens only, left-aligned: token 0 is the first token
  of the response. `mask` is bool `[batch, time]` and marks the real tokens, a prefix of each row. What stands at
  padding (NaN and infinities included) reaches neither a result nor a gradient, hence `torch.where` and never a product
  with the mask.
- Losses are sums, never means. The caller divides by the count over all ranks and micro-batches, so that neither
  changes the gradient.
- An empty mask gives 0, not NaN.
"""
