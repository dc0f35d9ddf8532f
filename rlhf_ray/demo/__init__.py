"""The embedded default: a task, data, tokenizer and tiny models made from the standard library's own docstrings."""
