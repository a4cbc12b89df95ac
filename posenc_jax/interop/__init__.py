"""Other people's harnesses, reading our runs.

    lm_eval.py          a run as a model of lm-evaluation-harness
    retrieval_tasks.py  our retrieval tasks as tasks and groups of it
    harness.py          names of tasks in, its results and our tidy rows out
    token_text.py       token ids as text that gives them back

Nothing here is imported by the rest; it needs the extra `lm-eval`. How to run it: docs/lm_eval.md.
"""
