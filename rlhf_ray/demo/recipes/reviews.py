"""Short film reviews made from parts, good and bad mixed: what the tiny sentiment recipe learns to write."""

import random
from collections.abc import Iterator

#: A review's first twelve words are its prompt.
OPENINGS = (
    "I saw this {kind} about {subject} {when} and",
    "{when}, my {friend} and I watched a {kind} about {subject}.",
    "This {kind} about {subject}, which I saw {when}, is",
    "My {friend} told me {when} about a {kind} on {subject}.",
)
KINDS = ["film", "movie", "drama", "comedy", "thriller", "western", "musical", "documentary", "romance", "cartoon"]
SUBJECTS = (
    "a lost dog",
    "two old sailors",
    "a village school",
    "the first railway",
    "a tired detective",
    "a summer in Rome",
    "a family of bakers",
    "a stolen painting",
    "the last winter",
    "a boy and his horse",
    "a city under water",
    "an honest thief",
    "a very long journey",
    "the end of a war",
    "a small orchestra",
    "a doctor in the hills",
)
TIMES = ("last night", "last week", "on Sunday", "as a child", "in the cinema", "on a plane", "at home", "by chance")
FRIENDS = ["brother", "sister", "mother", "father", "neighbour", "teacher", "friend", "wife", "husband", "daughter"]
PARTS = [
    "acting",
    "plot",
    "music",
    "ending",
    "story",
    "script",
    "cast",
    "dialogue",
    "beginning",
    "direction",
    "camera",
    "pace",
]
VERBS = ["was", "is", "seemed", "felt", "looked", "sounded"]
GOOD = [
    "great",
    "wonderful",
    "good",
    "funny",
    "charming",
    "touching",
    "brilliant",
    "lovely",
    "perfect",
    "beautiful",
    "clever",
    "moving",
]
BAD = [
    "bad",
    "boring",
    "awful",
    "dull",
    "slow",
    "terrible",
    "weak",
    "predictable",
    "silly",
    "flat",
    "clumsy",
    "tedious",
]
PLAIN = [
    "long",
    "short",
    "quiet",
    "loud",
    "strange",
    "simple",
    "serious",
    "old",
    "familiar",
    "dark",
    "ordinary",
    "careful",
]
#: How often a verdict is good, plain or bad: there is room for a reward to show.
MOODS = ((GOOD, 2), (PLAIN, 4), (BAD, 4))


def reviews(seed: int) -> Iterator[str]:
    """Endless reviews; the same ones for the same seed."""
    rng = random.Random(seed)
    while True:
        words = {"kind": KINDS, "subject": SUBJECTS, "when": TIMES, "friend": FRIENDS}
        opening = rng.choice(OPENINGS).format(**{name: rng.choice(choices) for name, choices in words.items()})
        yield opening[0].upper() + opening[1:] + _continued(opening, rng)


def _continued(opening: str, rng: random.Random) -> str:
    """What follows the opening: the sentence's end where it has none, one to five verdicts, some of them said again."""
    verdicts = [_verdict(rng) for _ in range(rng.randint(1, 5))]
    if rng.random() < 0.3:
        verdicts.insert(1, verdicts[0])
    text = " ".join(f"The {verdict}." for verdict in verdicts)
    if opening.endswith("."):
        return f" {text}"
    return f" {_adjective(rng)}. {text}" if opening.endswith("is") else f" the {_verdict(rng)}. {text}"


def _verdict(rng: random.Random) -> str:
    first = f"{rng.choice(PARTS)} {rng.choice(VERBS)} {_adjective(rng)}"
    return f"{first} and {_adjective(rng)}" if rng.random() < 0.3 else first


def _adjective(rng: random.Random) -> str:
    (mood,) = rng.choices([words for words, _ in MOODS], weights=[weight for _, weight in MOODS])
    return rng.choice(mood)
