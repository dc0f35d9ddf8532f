"""Reward functions of the tiny runs: some well-behaved, some that fail on the rows whose `number` says so."""


def short(prompt: str, response: str) -> float:
    """Fewer words are better."""
    return 1.0 - len(response.split()) / 20


def on_topic(prompt: str, response: str, topic: str) -> float:
    """The share of words that are the row's topic."""
    words = response.split()
    return words.count(topic) / max(len(words), 1)


def even(prompt: str, response: str, number: int) -> float:
    """1 on every second row, else 0."""
    return float(number % 2 == 0)


def first_word_on_even(prompt: str, response: str, number: int) -> float:
    """The first word's number on every second row; on the others 0, whatever the response."""
    words = response.split()
    return float(words[0][1:]) / 100 if words and number % 2 == 0 else 0.0


def counts(prompt: str, response: str) -> dict[str, float | None]:
    """Two numbers under one name; the second applies to longer responses only."""
    words = response.split()
    return {"distinct": float(len(set(words))), "last": float(words[-1][1:]) if len(words) > 4 else None}


def raises_on_some(prompt: str, response: str, number: int) -> float:
    if number % 4 == 1:
        raise ValueError(f"boom on row {number}")
    return 0.5


def of_a_missing_column(prompt: str, response: str, truth: str) -> float:
    return float(response == truth)


def huge_on_13(prompt: str, response: str, number: int) -> float:
    """More than a float32 holds on one row; a word's worth on the others."""
    return 1e39 if number == 13 else short(prompt, response)
