"""Talks with an assistant as people have judged them, made from parts: what the tiny preference recipes learn from.

Some requests would do harm and should be declined, the others answered; some come after an earlier exchange. A reply
fits its request or not, is friendly or not, and is whole or damaged. Of two replies the one with more of this is
chosen. Chosen ones are far from perfect, so that a policy trained on them leaves something to a reward.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf_ray.demo.damage import cut_short, repeat_words, shuffle_words
from rlhf_ray.demo.recipes.tasks import ACTIONS, STEPS, THINGS

HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant: "
HARMS = {
    "make": ["a small explosive", "a poison", "a weapon", "a fake passport"],
    "steal": ["a bicycle", "a car", "a letter", "a password"],
    "break into": ["a school", "a library", "a house", "an office"],
    "hurt": ["a dog", "a horse", "a neighbour", "a stranger"],
    "destroy": ["a bridge", "a garden", "a forest", "a clock"],
}
REASONS = ["It could hurt somebody.", "It is against the law.", "Somebody would suffer.", "It is dangerous."]
OPENINGS = ["Gladly.", "Of course.", "With pleasure.", "Good question."]
CLOSINGS = ["I hope this helps.", "Ask me if you need more.", "Have fun with it.", "Tell me how it goes."]
EARLIER = [
    ("Hello, who are you?", "I am an assistant."),
    ("Are you there?", "Yes, I am listening."),
    ("Can I ask you something?", "Yes, please do."),
    ("What is the weather like?", "I cannot see it from here."),
]
#: How often a reply fits, is friendly, is whole.
FITS, FRIENDLY, WHOLE = 0.6, 0.5, 0.6
DAMAGES = [cut_short, repeat_words, shuffle_words]


@dataclass(frozen=True)
class Dialogue:
    """What was said up to the request, and two replies to it."""

    turns: tuple[str, ...]  # human, assistant, ..., human
    chosen: str
    rejected: str
    harmful: bool

    @property
    def transcript(self) -> str:
        """All up to the reply, in the form of hh-rlhf."""
        speakers = [HUMAN, ASSISTANT] * len(self.turns)
        said = "".join(speaker + text for speaker, text in zip(speakers, self.turns, strict=False))
        return said + ASSISTANT.rstrip()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The same as chat messages."""
        roles = ["user", "assistant"] * len(self.turns)
        return [{"role": role, "content": text} for role, text in zip(roles, self.turns, strict=False)]


def dialogues(seed: int) -> Iterator[Dialogue]:
    """Endless dialogues; the same ones for the same seed."""
    rng = random.Random(seed)
    while True:
        harmful = rng.random() < 0.4
        request, answer = _harmful(rng) if harmful else _harmless(rng)
        earlier = rng.choice(EARLIER) if rng.random() < 0.4 else ()
        (better, chosen), (worse, rejected) = sorted(
            (_reply(harmful, answer, rng) for _ in range(2)), key=lambda reply: -reply[0]
        )
        if better > worse:
            yield Dialogue((*earlier, request), chosen, rejected, harmful)


def _harmless(rng: random.Random) -> tuple[str, str]:
    """(request, the answer to it)."""
    action, thing = rng.choice(ACTIONS), rng.choice(list(THINGS))
    first, second = rng.sample(STEPS, 2)
    return f"How do I {action} {thing}?", f"To {action} {thing}, {first} and {second}."


def _harmful(rng: random.Random) -> tuple[str, str]:
    """(request, the answer that nobody should give)."""
    action, things = rng.choice(list(HARMS.items()))
    thing, step = rng.choice(things), rng.choice(STEPS)
    return f"How do I {action} {thing}?", f"To {action} {thing}, {step} and do it at night."


def _reply(harmful: bool, answer: str, rng: random.Random) -> tuple[int, str]:
    """(what it is worth, text): a refusal or an answer, friendly or not, whole or damaged."""
    fits, friendly, whole = rng.random() < FITS, rng.random() < FRIENDLY, rng.random() < WHOLE
    if harmful == fits:
        text = (
            f"I am sorry, but I cannot help with that. {rng.choice(REASONS)}" if friendly else "No, I cannot do that."
        )
    else:
        text = f"{rng.choice(OPENINGS)} {answer} {rng.choice(CLOSINGS)}" if friendly else answer
    if not whole:
        text = rng.choice(DAMAGES)(text, rng)
    return 2 * fits + friendly + whole, text
