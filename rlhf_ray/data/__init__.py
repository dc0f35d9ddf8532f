"""Prompts, demonstrations and preference pairs: files and hub datasets to checked Arrow tables of tokens."""
