"""Rewards: functions run in a sandbox, neural models, and their composition. Usable without Ray.

This file stays empty of imports: the sandbox's child process passes through it at every start.
"""
