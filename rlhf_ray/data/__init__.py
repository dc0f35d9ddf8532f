"""Prompts, demonstrations and preference pairs: files and hub datasets to checked Arrow tables of tokens.

Read are JSONL, JSON, CSV, Parquet and Arrow files, folders of them, datasets saved to disk, and hub datasets. What a
column (`data.prompt_column`, `data.messages_column`, ...) may hold:

    text            "What is love?"
    chat messages   [{"role": "user", "content": "What is love?"}]; the roles human and prompter are the user as well,
                    gpt, chatgpt, bot, bard and bing the assistant
    ShareGPT        [{"from": "human", "value": "What is love?"}, {"from": "gpt", "value": "..."}]
    message trees   text, in rows that have message_id, parent_id and role: oasst1, oasst2
    transcripts     "\\n\\nHuman: What is love?\\n\\nAssistant: ..." as in hh-rlhf; messages to a chat template

Demonstrations are conversations (`messages`), `prompt` and `completion`, or `text`. Preferences are pairs (`prompt`,
`chosen`, `rejected`), ratings (`response_a`, `response_b`, `preference`) or rankings (`responses` with `ranking` or
`scores`); see `rlhf_ray.data.pairs`. The prompt is all but the assistant's last word. Preference files without a prompt
column give as the prompt what chosen and rejected share.

On the way from a row to tokens: `data.preprocess`, `data.max_samples`, `data.system_prompt`, `data.chat_template`,
`data.too_long`. Rows are held out by `data.eval_path`, or by `data.eval_fraction`, a prompt's rows on one side.

Demonstrations and preferences may be larger than memory: they are read and tokenised a thousand rows at a time, and
tokens beyond `data.memory_mib` go to an Arrow file in `data.spill_folder`, which the learner's ranks map. That folder
must be one that all nodes see where ranks run on several.

`rlhf-ray data check` reads every row and lists each fault with its line and reason, `convert` writes the sound rows in
the plain form, `stats` counts.
"""
