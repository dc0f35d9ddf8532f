"""A composer with every kind of method, in a module that a sandbox's child imports quickly."""

from rlhf_ray.rewards import RewardComposer, llm_reward


class Graded(RewardComposer):
    def __init__(self, base: float) -> None:
        self.base = base

    @llm_reward
    def method(self, prompt: str, response: str) -> dict[str, float | None]:
        return {"length": len(response) * self.base, "prompt": None if prompt == "b" else 1.0}

    @llm_reward
    async def awaited(self, prompt: str, response: str, truth: str) -> float:
        return self.base * (response == truth)

    @llm_reward(batch_size=2)
    def batch(self, prompts: list[str], responses: list[str]) -> list[float]:
        return [self.base + len(prompts)] * len(responses)
