"""Synthetic documents whose answers are known: pure functions of (task, split, seed, index).

    filler.py     the text between needles, cleaned of whatever could be taken for a needle
    instances.py  what a task hands out, and its counter-based randomness
    retrieval.py  R1 passkey and R3 multi-query associative recall
    needles.py    R2 several keys, R6 variables, R8 latest and first, R10 synonyms
    strings.py    R4 n-gram, R5 copy, R7 phone book, R9 n-back and flip-flop
    table.py      every task by name, with its shortest length
    windows.py    training windows of them
    offset.py     P3, the token exactly t back
    longtext.py   C: documents of known class, their labels as ids, and training windows of them

This package imports `data` and nothing else of posenc_jax.
"""
