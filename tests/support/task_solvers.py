"""Solvers of every scored task, written from the wording of the task alone, and the instances that they
read.
"""

import itertools

from posenc_jax.tasks.task_registry import find

from support.task_fillers import FILLER, SENTENCES, TOKENIZER

BOS, SEP = TOKENIZER.bos, TOKENIZER.sep


def filler_of(task):
    return SENTENCES if task.sentences else FILLER


def made(name, length, index, split="test"):
    task = find(name)
    return task.instance(filler_of(task), split=split, seed=0, index=index, length=length)


def is_key(token):
    return 128 <= token < 192


def is_value(token):
    return 192 <= token < 256


# Solvers: from the tokens before an answer, the set of tokens that could follow. Written from the
# wording in EVALUATION, sec. 2, with loops, without the package.


def by_suffix(tokens, length, context):
    """What followed the last `length` tokens wherever they stood in the context."""
    tail = tokens[-length:]
    return {
        context[i + length] for i in range(len(context) - length) if context[i : i + length] == tail
    }


def solve_needles(tokens, context):
    return by_suffix(tokens, 2, context)


def solve_mqar(tokens, context):
    return by_suffix(tokens, 1, context)


def solve_ngram(tokens, _):
    return by_suffix(tokens, 3, tokens[:-1])


def solve_phonebook(tokens, context):
    asked = tokens[tokens.index(SEP) + 1 :]
    return by_suffix(asked, len(asked), context)


def solve_copy(tokens, context):
    text = context[1:]
    done = len(tokens) - tokens.index(SEP) - (tokens.count(SEP))
    return {text[done]}


def solve_variables(tokens, context):
    bound = {}
    for a, b in itertools.pairwise(context):
        if is_key(a) and (is_key(b) or is_value(b)) and a not in bound:
            bound[a] = b
    # `x v` right before `y ...` reads as a pair too; a value is never a name, so no chain runs wrong.
    name = tokens[-1]
    for _ in range(20):
        if is_value(name):
            return {name}
        name = bound[name]
    raise AssertionError("a chain without an end")


def solve_latest_first(tokens, context):
    asked, (k1, k2) = bytes(tokens[tokens.index(SEP) + 1 : -2]), tokens[-2:]
    found = [context[i + 2] for i in range(len(context) - 2) if context[i : i + 2] == [k1, k2]]
    assert len(found) == len(set(found)) == 4
    return {found[{b"FIRST": 0, b"LAST": -1}[asked]]}


def solve_nback(tokens, context):
    back = tokens[-1] - 128 + 1
    return {context[-back]}


def solve_flipflop(tokens, _):
    state = None
    steps = tokens[1:] if is_key(tokens[1]) else tokens[2:]
    for order, bit in zip(steps[::2], steps[1::2], strict=False):
        state = bit if order == 128 else state
    assert tokens[-1] == 130
    return {state}


def solve_synonym(tokens, context):
    concept = next(k for k in range(32) if 32 + (5 * k + 11) % 32 == tokens[-1] - 128)
    assert tokens[-1] not in context  # no literal overlap
    return by_suffix([128 + concept], 1, context)


def solve_passkey(tokens, context):
    asked = tokens[tokens.index(SEP) + 1 :]
    return by_suffix(asked, len(asked), context)


SOLVERS = {
    "passkey": solve_passkey, "passkey_sentences": solve_passkey, "ngram": solve_ngram,
    "copy": solve_copy, "phonebook": solve_phonebook, "latest_first": solve_latest_first,
    "nback": solve_nback, "flipflop": solve_flipflop, "synonym": solve_synonym,
    **{f"needles_{n}": solve_needles for n in (1, 4, 16)},
    **{f"variables_{n}": solve_variables for n in (1, 2, 4)},
    **dict.fromkeys(("mqar", "mqar_8", "mqar_16", "mqar_32"), solve_mqar),
}  # fmt: skip
