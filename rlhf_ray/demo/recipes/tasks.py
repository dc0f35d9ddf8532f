"""Instructions with good and damaged answers made from parts: what the tiny instruction recipe learns from."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf_ray.demo.damage import DAMAGES

THINGS = {
    "bread": "food",
    "tea": "a drink",
    "rain": "weather",
    "the moon": "a small world",
    "a bicycle": "a machine",
    "a garden": "a place",
    "a library": "a place",
    "the sea": "a place",
    "music": "an art",
    "a clock": "a machine",
    "a bridge": "a building",
    "a horse": "an animal",
    "the wind": "weather",
    "a letter": "a message",
    "coffee": "a drink",
    "a forest": "a place",
    "a train": "a machine",
    "a school": "a building",
    "snow": "weather",
    "a dog": "an animal",
}
QUALITIES = {
    "useful": "it saves time",
    "popular": "many people know it",
    "important": "life would be hard without it",
    "beautiful": "it changes with the light",
    "cheap": "there is so much of it",
    "dangerous": "nobody can stop it",
    "famous": "poets write about it",
    "old": "people had it long ago",
}
AUDIENCES = ["a child", "a visitor", "a friend", "a scientist", "an old man", "a student", "a traveller", "a poet"]
ACTIONS = ["draw", "photograph", "understand", "enjoy", "describe", "find", "remember", "choose", "compare", "study"]
STEPS = (
    "look at it closely",
    "take your time",
    "ask somebody who knows it",
    "write down what you see",
    "find a quiet place",
    "start with the simple parts",
    "read about it",
    "try it again tomorrow",
)


@dataclass(frozen=True)
class Task:
    """An instruction, a good answer, and a worse one."""

    instruction: str
    answer: str
    rejected: str


def tasks(seed: int) -> Iterator[Task]:
    """Endless tasks; the same ones for the same seed."""
    rng = random.Random(seed)
    while True:
        (instruction, answer), (_, other) = _asked(rng), _asked(rng)
        yield Task(instruction, answer, other if rng.random() < 0.3 else _damaged(answer, rng))


def _asked(rng: random.Random) -> tuple[str, str]:
    """(instruction, good answer)."""
    thing, kind = rng.choice(list(THINGS.items()))
    quality, reason = rng.choice(list(QUALITIES.items()))
    audience, steps = rng.choice(AUDIENCES), rng.sample(STEPS, 3)
    name = thing[0].upper() + thing[1:]
    match rng.randrange(3):
        case 0:
            extra = rng.choice([f"It is also {kind}.", f"For example, {steps[0]}.", f"So {steps[0]}."])
            asked = f"Explain to {audience} why {thing} is {quality}."
            return asked, f"{name} is {quality} because {reason}. {extra}"
        case 1:
            said = f"{name} is {kind}. For {audience}, it is {quality} because {reason}."
            return f"Describe {thing} to {audience}.", said
        case _:
            action = rng.choice(ACTIONS)
            answer = f"To {action} {thing}, first {steps[0]}. Then {steps[1]}. Finally, {steps[2]}."
            return f"How do I {action} {thing}?", answer


def _damaged(answer: str, rng: random.Random) -> str:
    while True:
        (damage,) = rng.choices(list(DAMAGES), weights=list(DAMAGES.values()))
        if (damaged := damage(answer, rng)) != answer:
            return damaged
