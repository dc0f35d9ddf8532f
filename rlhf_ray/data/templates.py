"""Chat templates by name, for tokenizers that bring none or the wrong one. Jinja, as `apply_chat_template` renders it.

Each writes the special tokens that belong to it, so nothing is added when the text is tokenised.
"""

from typing import TYPE_CHECKING

from rlhf_ray.config.data import DataSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPLIT_OFF_SYSTEM = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}"
)
_REQUIRE_ALTERNATION = (
    "{% if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
    "{{ raise_exception('after an optional system message, user and assistant must take turns; message '"
    " ~ loop.index ~ ' of them is from ' ~ message['role']) }}"
    "{% endif %}"
)

#: Llama-2-Chat: a BOS and an EOS around every pair of turns. https://www.llama.com/docs/model-cards-and-prompt-formats
LLAMA2 = (
    _SPLIT_OFF_SYSTEM + "{% for message in turns %}" + _REQUIRE_ALTERNATION + "{% if message['role'] == 'user' %}"
    "{{ bos_token }}{{ '[INST] ' }}"
    "{% if loop.first and system %}{{ '<<SYS>>\n' ~ system ~ '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ message['content'].strip() ~ ' [/INST]' }}"
    "{% else %}{{ ' ' ~ message['content'].strip() ~ ' ' ~ eos_token }}{% endif %}"
    "{% endfor %}"
)

#: Mistral-7B-Instruct v0.1 and v0.2: one BOS; a system message stands before the first user message.
MISTRAL = (
    _SPLIT_OFF_SYSTEM + "{{ bos_token }}{% for message in turns %}" + _REQUIRE_ALTERNATION + "{% if message['role'] == "
    "'user' %}{{ '[INST] ' }}{% if loop.first and system %}{{ system ~ '\n\n' }}{% endif %}"
    "{{ message['content'] ~ ' [/INST]' }}"
    "{% else %}{{ ' ' ~ message['content'] ~ eos_token }}{% endif %}"
    "{% endfor %}"
)

#: ChatML, as Qwen and OpenHermes use it: any role, no BOS.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

#: Alpaca: https://github.com/tatsu-lab/stanford_alpaca. A system message takes the place of its first sentences.
ALPACA = (
    _SPLIT_OFF_SYSTEM + "{{ bos_token }}{{ system or 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.' }}{{ '\n\n' }}"
    "{% for message in turns %}" + _REQUIRE_ALTERNATION + "{% if message['role'] == 'user' %}"
    "{{ '### Instruction:\n' ~ message['content'] ~ '\n\n' }}"
    "{% else %}{{ '### Response:\n' ~ message['content'] ~ eos_token ~ '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)

NAMED = {"llama2": LLAMA2, "mistral": MISTRAL, "chatml": CHATML, "alpaca": ALPACA}


def choose_template(section: DataSection, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The Jinja template that `data.chat_template` asks for; None where text is taken as it is."""
    if section.chat_template == "auto":
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    return NAMED.get(section.chat_template)
