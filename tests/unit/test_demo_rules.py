"""The demo's rules agree with a reader."""

import pytest

from rlhf_ray.demo import rules

pytestmark = pytest.mark.unit

ALL = [
    rules.starts_with_capital,
    rules.imperative_verb,
    rules.one_sentence,
    rules.fits_line,
    rules.mentions_name,
    rules.no_repetition,
]
PROMPT = "<|user|>\ndef Cookie.set_allowed_domains(self, domains=None)<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("rule", ALL)
@pytest.mark.parametrize("response", ["", " ", "\n"])
def test_nothing_said_earns_nothing(rule, response):
    assert rule(PROMPT, response) == 0.0


@pytest.mark.parametrize("rule", ALL)
def test_a_perfect_docstring_earns_everything(rule):
    assert rule(PROMPT, "Set the sequence of allowed domains, or None.") == 1.0


@pytest.mark.parametrize(
    ("rule", "response", "score"),
    [
        (rules.starts_with_capital, "return x.", 0.0),
        (rules.starts_with_capital, "'Quoted' start.", 0.0),
        (rules.imperative_verb, "Returns the value.", 0.0),
        (rules.imperative_verb, "The value.", 0.0),
        (rules.imperative_verb, "Process the queue.", 1.0),
        (rules.imperative_verb, "return x", 1.0),
        (rules.imperative_verb, "Frozenset the value.", 0.0),
        (rules.one_sentence, "Return x", 0.0),
        (rules.one_sentence, "Return x. Or y.", 0.0),
        (rules.one_sentence, "Return x...", 0.0),
        (rules.one_sentence, "Return os.path of x.", 1.0),
        (rules.one_sentence, ".", 0.0),
        (rules.fits_line, "x" * 72, 1.0),
        (rules.fits_line, "x" * 73, 0.0),
        (rules.fits_line, "Return\nx.", 0.0),
        (rules.mentions_name, "Set something.", 1 / 3),
        (rules.mentions_name, "Close the file.", 0.0),
        (rules.no_repetition, "Return the the value.", 0.0),
        (rules.no_repetition, "Return the value of the value of it.", 0.0),
        (rules.no_repetition, "Return the name of the file.", 1.0),
    ],
)
def test_single_rules(rule, response, score):
    assert rule(PROMPT, response) == pytest.approx(score)


@pytest.mark.parametrize(
    ("signature", "response", "score"),
    [
        ("def Foo.__init__(self)", "Initialize the parser.", 1.0),
        ("def formatTime(self)", "Format the time.", 1.0),
        ("async def HTTPServer.parseHTTPHeader(x)", "Parse one http header.", 1.0),
        ("def f(x)", "Anything.", 1.0),
        ("no signature at all", "Anything.", 1.0),
        ("def close(self)", "Disclose it.", 0.0),
    ],
)
def test_names_are_split_into_words(signature, response, score):
    assert rules.mentions_name(signature, response) == score
