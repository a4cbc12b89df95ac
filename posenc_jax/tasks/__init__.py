"""Synthetic documents whose answers are known: pure functions of (task, split, seed, index).

    filler.py     the text between needles, cleaned of whatever could be taken for a needle
    retrieval.py  R1 passkey and R3 multi-query associative recall, and training windows of them
    longtext.py   C: documents of known class, their labels as ids, and training windows of them

This package imports `data` and nothing else of posenc_jax.
"""
