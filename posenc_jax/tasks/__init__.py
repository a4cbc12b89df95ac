"""Tasks: synthetic documents with known answers, pure functions of (task, split, seed, index).

    filler.py             text between needles, without anything that looks like a needle
    instances.py          instances with their answers, and counter-based randomness
    passkey_mqar.py       R1 passkey and R3 multi-query associative recall
    needles.py            R2 several keys, R6 variables, R8 latest and first, R10 synonyms
    symbol_tasks.py       R4 n-gram, R5 copy, R7 phone book, R9 n-back and flip-flop
    task_registry.py      every task by name, with its shortest length
    retrieval_windows.py  training windows of retrieval documents
    offset_lookup.py      P3, the token exactly t back
    longtext.py           C: documents of known class, labels as ids, and their training windows
    instance_text.py      an instance as readable text

This package imports only `data` and `results` of posenc_jax.
"""
