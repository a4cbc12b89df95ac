"""Policies that bind nothing, written from the wording of the tasks: they look at the tokens and guess.

A policy takes the tokens before an answer (bytes tokenizer: keys 128 ... 191, values 192 ... 255, BOS,
SEP) and returns the tokens that it says come next. It never looks where the asked key stands.
"""

import collections
import math
import random

BOS, SEP = 256, 257


def is_value(token):
    return 192 <= token < 256


def context_of(tokens):
    return tokens[1 : tokens.index(SEP)]


def most_frequent(tokens):
    return max(sorted(set(tokens)), key=tokens.count)


def asked_values(tokens):
    """The values that were answered after SEP so far."""
    return [token for token in tokens[tokens.index(SEP) + 1 :] if is_value(token)]


def values_left(tokens):
    """The values in sight, each as often as it was not yet answered, in the order of the context."""
    left = [token for token in context_of(tokens) if is_value(token)]
    for token in asked_values(tokens):
        left.remove(token)
    return left


# The best of each task.


def any_number(tokens, width):
    # Nothing to bind: one of all numbers. Any fixed one is a passkey of one split alone.
    draw = random.Random(repr(tokens))
    return [draw.randrange(ord("0"), ord("9") + 1) for _ in range(width)]


def any_symbol(tokens, width):
    return [192] * width


def last_value(tokens, width):
    return [values_left(tokens)[-1]]


def ngram(tokens, width):
    """The most frequent symbol where the answer can stand, less the three that are asked with."""
    text = tokens[1:]
    places, asked = text[3:-4], text[-3:]
    counts = collections.Counter(places)
    counts.subtract(symbol for symbol in asked if symbol in places)
    return [max(sorted(counts), key=counts.get)]


def copy(tokens, width):
    return [most_frequent(left_to_copy(tokens))]


def left_to_copy(tokens):
    at = tokens.index(SEP)
    left = tokens[1:at]
    for token in tokens[at:]:
        if token != SEP:
            left.remove(token)
    return left


def phonebook(tokens, width):
    """A number that stands once and not last; rather one whose successor is there too."""
    numbers = numbers_of(tokens)
    candidates = [n for n in numbers[:-1] if numbers.count(n) == 1]

    def successor(number):
        return (number[0], 192 + (number[1] - 192 + 1) % 64)

    return list(max(candidates, key=lambda n: numbers.count(successor(n))))


def numbers_of(tokens):
    book = context_of(tokens)
    return [tuple(book[i + 3 : i + 5]) for i in range(len(book) % 5, len(book), 5)]


def nback(tokens, width):
    return [most_frequent(context_of(tokens)[-16:])]


def flipflop(tokens, width):
    bits = [token for token in tokens if token in (ord("0"), ord("1"))]
    return [most_frequent(bits[:-1])]


BEST = {
    "passkey": any_number, "passkey_sentences": any_number, "needles_1": any_symbol,
    "ngram": ngram, "copy": copy, "phonebook": phonebook, "nback": nback, "flipflop": flipflop,
    **dict.fromkeys(
        ("needles_4", "needles_16", "mqar", "mqar_8", "mqar_16", "mqar_32", "variables_1",
         "variables_2", "variables_4", "latest_first", "synonym"), last_value,
    ),
}  # fmt: skip


def offset(tokens, nearest, farthest):
    """P3: the most frequent symbol that an offset can reach."""
    at = len(tokens) - 1
    return [most_frequent(tokens[at - farthest : at - nearest + 1])]


def offset_open(tokens, nearest, farthest):
    """P3: the same, less the symbols that were answered already."""
    at = len(tokens) - 1
    counts = collections.Counter(tokens[at - farthest : at - nearest + 1])
    counts.subtract(asked_values(tokens))
    return [max(sorted(counts), key=counts.get)]


def least_crowded(tokens, width):
    """R2: the value of the needle that others at uniform places on either side of it fit best.

    The likelihood of these places, each needle being asked for as often and lying anywhere: with r of n
    others before a place x, r! (n - r)! / (x^r (1 - x)^(n - r)).
    """
    context = context_of(tokens)
    places = [at for at, token in enumerate(context) if is_value(token)]
    n, odds = len(places) - 1, []
    for r, at in enumerate(places):
        before, filler = at - 2 - 3 * r, len(context) - 3 * (n + 1)
        x = (before + 0.5) / (filler + 1)
        odds.append(
            math.lgamma(r + 1)
            + math.lgamma(n - r + 1)
            - r * math.log(x)
            - (n - r) * math.log(1 - x)
        )
    return [context[places[odds.index(max(odds))]]]


# Others, which may do no better: each takes the symbols in sight and those not yet answered.


def symbols_in_sight(name, tokens):
    """All symbols that could be an answer, in the order of the context."""
    if name == "flipflop":
        return [token for token in tokens if token in (ord("0"), ord("1"))]
    if name == "ngram":
        return tokens[1:-3]
    if name == "phonebook":
        return numbers_of(tokens)
    return [token for token in context_of(tokens) if is_value(token)]


def still_open(name, tokens):
    if name == "copy":
        return left_to_copy(tokens)
    return values_left(tokens) if name.startswith("mqar") else symbols_in_sight(name, tokens)


OTHERS = {
    "most recent": lambda name, tokens, random: symbols_in_sight(name, tokens)[-1],
    "first": lambda name, tokens, random: symbols_in_sight(name, tokens)[0],
    "most frequent": lambda name, tokens, random: most_frequent(symbols_in_sight(name, tokens)),
    "one in sight": lambda name, tokens, random: random.choice(symbols_in_sight(name, tokens)),
    "one not yet answered": lambda name, tokens, random: random.choice(still_open(name, tokens)),
    "most recent not yet answered": lambda name, tokens, random: still_open(name, tokens)[-1],
    "any of the alphabet": lambda name, tokens, random: 192 + random.randrange(64),
}
