"""Interfaces to lm-evaluation-harness (extra `lm-eval`); docs/lm_eval.md has the commands.

lm_eval.py        a run as a model of the harness
lm_eval_tasks.py  our retrieval tasks as tasks and groups of the harness
harness.py        one call of the harness: its results, and rows
token_text.py     token ids as text, and back
"""
