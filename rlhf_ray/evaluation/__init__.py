"""Measuring saved models: statistics of responses, win rates, judges, benchmarks, and the report that holds them.

`trainers.evaluate` runs the models; what is here turns their answers into numbers with confidence intervals.
"""
