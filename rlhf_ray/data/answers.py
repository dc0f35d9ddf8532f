"""Which tokens of a prompt are answers that the assistant gave earlier in the conversation."""

import numpy as np

from rlhf_ray.data.conversation import Prompt, Renderer
from rlhf_ray.data.transcripts import answers, is_transcript
from rlhf_ray.errors import DataError


def answer_mask(prompt: Prompt, renderer: Renderer, where: str) -> list[int]:
    """1 on the tokens that the assistant said, 0 on all others, [tokens as `renderer.prompt_tokens` gives them].

    The end of text that a template puts after an answer belongs to it, as the model is to say it, too. `where` names
    the conversation for the DataError: of a template that writes the turns of a conversation otherwise as it grows.
    """
    spans = _rendered_answers(prompt, renderer, where)
    starts, ends = np.array(renderer.prompt_offsets(prompt.text, where), dtype=np.int64).reshape(-1, 2).T
    mask = np.zeros(len(starts), dtype=np.int8)
    for first, end in spans:
        mask[(starts >= first) & (starts < end) & (ends > starts)] = 1
    return [int(value) for value in mask]


def _rendered_answers(prompt: Prompt, renderer: Renderer, where: str) -> list[tuple[int, int]]:
    """[start, end) of each earlier answer in the prompt's text."""
    if prompt.messages is None:
        # The last "Assistant:" opens the response, which is not here.
        return (
            [(start, end) for start, end in answers(prompt.text) if end > start] if is_transcript(prompt.text) else []
        )
    spans = []
    for turn, message in enumerate(prompt.messages):
        if message["role"] != "assistant":
            continue
        before = renderer.render(prompt.messages[:turn], where) if turn else ""
        through = renderer.render(prompt.messages[: turn + 1], where, open_answer=False)
        if not (through.startswith(before) and prompt.text.startswith(through)):
            raise DataError(
                f"{where}: the chat template writes message {turn} otherwise when others follow, so that earlier "
                "answers cannot be told from the rest. Learn the last one only (sft.loss_on=completion), or set "
                "another data.chat_template."
            )
        eos = renderer.tokenizer.eos_token
        stop = through.rfind(eos, len(before))
        spans.append((len(before), stop + len(eos) if stop >= 0 else len(through)))
    return spans
