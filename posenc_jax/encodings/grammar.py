"""The scheme grammar: parses a line of text into a `Scheme` and writes a `Scheme` as a line.

::

    scheme  = layer ("," layer)*             cycled over the layers of the model
    layer   = [count "*"] heads              the same layer count times, or
            | group ("|" group)*             head groups side by side
            | [count "*"] "(" group ("|" group)+ ")"
    group   = [share "*"] heads              share: this group's weight among the heads
    heads   = sum ["~" part]                 "~" sets the temperature of these heads
    value   = number | word | true | false | "[" number ("," number)* "]" | part | "L" ["/" number]
    sum     = term ("+" term)*
    term    = "nope" | part | bias ("&" bias)+ | "(" heads ")"      "&" adds biases
    part    = name ["(" key "=" value ("," key "=" value)* ")"]

Examples: ``rope+alibi`` (both on every head), ``rope|alibi`` (half the heads each),
``3*(rope+alibi)|1*nope~logn`` (coupled split), ``3*(rope+alibi),1*nope~logn`` (every fourth layer
flat), ``alibi&log(c=2.0)``, ``rope(base=match)``,
``rope(stretch=yarn(factor=4.0))+alibi(factor=4.0)``, ``sinusoidal+alibi``, ``rope+linear`` (linear
attention: a form, not a bias), ``3*(rope+window(size=L/8)),nope~logn`` (three layers with a window
of an eighth of the training length L, then one without). An absolute part applies to the whole
scheme.
"""

import dataclasses
import re

from posenc_jax.encodings.base import Absolute, Bias, Form, Part, Rotation, Temperature
from posenc_jax.encodings.bias_sum import BiasSum
from posenc_jax.encodings.registry import REGISTRY, registered_name
from posenc_jax.encodings.rope_scaling import ROPE_SCALINGS, RopeScaling
from posenc_jax.encodings.scheme import MOST_LAYERS, HeadGroup, Layer, Scheme
from posenc_jax.encodings.scheme_presets import PRESETS, line_of
from posenc_jax.encodings.window import Window
from posenc_jax.results.near_names import near_names

_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_][A-Za-z_0-9.-]*)|(?P<number>[+-]?[0-9][0-9.eE+-]*)|(?P<sign>.))"
)
_KINDS = {
    Rotation: "rotation",
    Bias: "bias",
    Form: "form",
    Temperature: "temperature",
    Absolute: "absolute",
    Window: "window",
}

LONGEST_LINE, DEEPEST = 100_000, 20  # characters; brackets inside each other
SHOWN = 60  # characters of a long line, word or number in an error message


def parse(text: str) -> Scheme:
    """Returns the scheme of a text or a preset's name; ValueError with the column of the error."""
    if len(text) > LONGEST_LINE:
        raise ValueError(f"a scheme of {len(text):,} characters; there may be {LONGEST_LINE:,}")
    return _Parser(line_of(text)).scheme()


def unparse(scheme: Scheme) -> str:
    """Returns the line that `parse` turns into an equal scheme, without defaults."""
    layers, first = [], True
    runs: list[list] = []
    for layer in scheme.layers:
        if runs and runs[-1][0] == layer and not (first and scheme.absolute):
            runs[-1][1] += 1
        else:
            runs.append([layer, 1])
        first = False
    for i, (layer, count) in enumerate(runs):
        absolute = scheme.absolute if i == 0 else None
        groups = [
            _unparse_heads(heads, absolute if g == 0 else None) for g, heads in enumerate(layer)
        ]
        if len(layer) == 1:
            shown = groups[0] if count == 1 else f"{count}*{_enclose(groups[0])}"
        else:
            equal = len({heads.share for heads in layer}) == 1 and layer[0].share == 1
            pairs = zip(layer, groups, strict=True)
            shown = "|".join(t if equal else f"{h.share}*{_enclose(t)}" for h, t in pairs)
            shown = shown if count == 1 else f"{count}*({shown})"
        layers.append(shown)
    return ",".join(layers)


def _enclose(text: str) -> str:
    return f"({text})" if re.search(r"[+]", re.sub(r"\([^()]*\)", "", text)) else text


def _unparse_heads(heads: HeadGroup, absolute: Absolute | None) -> str:
    parts = (absolute, heads.rotation, heads.bias, heads.form, heads.window)
    terms = [_unparse_term(p) for p in parts if p is not None]
    tail = f"~{unparse_part(heads.temperature)}" if heads.temperature else ""
    return ("+".join(terms) or "nope") + tail


def _unparse_term(part: Part) -> str:
    terms = part.terms if isinstance(part, BiasSum) else (part,)
    return "&".join(map(unparse_part, terms))


def unparse_part(part: Part | RopeScaling) -> str:
    """Returns the text of a part or a RoPE scaling, without default settings."""
    fields = sorted(dataclasses.fields(part), key=lambda f: bool(f.kw_only))  # factor, ntk last
    changed = [
        f"{f.name}={_unparse_value(getattr(part, f.name))}"
        for f in fields
        if getattr(part, f.name) != f.default
    ]
    return registered_name(part) + (f"({','.join(changed)})" if changed else "")


def _unparse_value(value) -> str:
    if isinstance(value, RopeScaling):
        return unparse_part(value)
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _cannot_be(name: str, field: dataclasses.Field, text: str) -> str:
    """Returns why a setting cannot have a value, with the spelling of what it can have."""
    if isinstance(field.default, bool):
        near = f": write {field.name}={text.lower()}" if text.lower() in ("true", "false") else ""
        return f"{name}: {field.name} must be true or false, not {_short(text)!r}{near}"
    default = _unparse_value(field.default)
    return f"{name}: {field.name} cannot be {_short(text)!r} (default: {default})"


class _Parser:
    """Recursive-descent parser of one line."""

    def __init__(self, text: str):
        self.text, self.tokens, self.at, self.depth = text, [], 0, 0
        for match in _TOKEN.finditer(text.rstrip()):
            if match.lastgroup:
                self.tokens.append(
                    (match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))
                )
        self.tokens.append(("end", "the end", len(text)))

    def fail(self, what: str, token=None) -> ValueError:
        at = (token or self.tokens[self.at])[2]
        first = max(0, min(at - SHOWN // 2, len(self.text) - SHOWN))
        near = f"{'...' * (first > 0)}{self.text[first:][:SHOWN]}"
        near += "..." * (first + SHOWN < len(self.text))
        return ValueError(f"scheme {near!r}, character {at + 1}: {what}")

    def take(self, sign: str) -> bool:
        if self.tokens[self.at][:2] == ("sign", sign):
            self.at += 1
            return True
        return False

    def expect(self, sign: str) -> None:
        if not self.take(sign):
            raise self.fail(f"expected {sign!r}, found {_short(self.tokens[self.at][1])!r}")

    def scheme(self) -> Scheme:
        self.absolute: Absolute | None = None
        layers = self.layer()
        while self.take(","):
            layers += self.layer()
            if len(layers) > MOST_LAYERS:
                raise self.fail(f"more than {MOST_LAYERS:,} layers")
        if self.tokens[self.at][0] != "end":
            raise self.fail(f"unexpected {_short(self.tokens[self.at][1])!r}")
        return Scheme(tuple(layers), self.absolute)

    def layer(self) -> list[Layer]:
        start = self.tokens[self.at]
        groups = [self.group()]
        while self.take("|"):
            groups.append(self.group())
        if len(groups) == 1:
            count, inner = groups[0]
            return [tuple(inner)] * count
        if any(len(inner) > 1 for _, inner in groups):
            raise self.fail("a head split inside a head split", start)
        return [tuple(dataclasses.replace(inner[0], share=share) for share, inner in groups)]

    def group(self) -> tuple[int, list[HeadGroup]]:
        """Returns the count in front and the head groups."""
        count = 1
        kind, value, _ = self.tokens[self.at]
        if kind == "number":
            if not value.isdigit() or len(value) > 4 or int(value) < 1:
                raise self.fail(
                    f"a count must be a positive whole number below 10000, not {_short(value)}"
                )
            count, self.at = int(value), self.at + 1
            self.expect("*")
        if self.take("("):
            self.depth += 1
            if self.depth > DEEPEST:
                raise self.fail(f"more than {DEEPEST} brackets inside each other")
            inner = [self.group()]
            while self.take("|"):
                inner.append(self.group())
            self.expect(")")
            self.depth -= 1
            if len(inner) > 1:
                return count, [dataclasses.replace(g[1][0], share=g[0]) for g in inner]
            if inner[0][0] != 1:
                raise self.fail("a count inside parentheses needs a '|'")
            if self.tokens[self.at][:2] not in (("sign", "+"), ("sign", "~")):
                return count, inner[0][1]
            return count, [self.heads(inner[0][1][0])]
        return count, [self.heads(HeadGroup())]

    def heads(self, heads: HeadGroup) -> HeadGroup:
        begun = heads != HeadGroup()
        while not begun or self.take("+"):
            begun = True
            heads = self.term(heads)
        if self.take("~"):
            token = self.tokens[self.at]
            part = self.part(REGISTRY)
            if not isinstance(part, Temperature):
                raise self.fail(f"{_short(token[1])!r} is no temperature", token)
            if heads.temperature is not None:
                raise self.fail("a second temperature on the same heads", token)
            heads = dataclasses.replace(heads, temperature=part)
        return heads

    def term(self, heads: HeadGroup) -> HeadGroup:
        token = self.tokens[self.at]
        if token[:2] == ("name", "nope"):
            self.at += 1
            return heads
        part = self.part(REGISTRY)
        kind = next(kind for base, kind in _KINDS.items() if isinstance(part, base))
        if kind == "temperature":
            raise self.fail(f"{_short(token[1])!r} is a temperature: attach it with '~'", token)
        if kind == "absolute":
            if self.absolute is not None:
                raise self.fail("a second absolute part", token)
            self.absolute = part
            return heads
        if self.tokens[self.at][:2] == ("sign", "&"):
            part = self.bias_sum(part)
        if getattr(heads, kind) is not None:
            remedy = ": '&' adds biases" if kind == "bias" else ""
            raise self.fail(f"a second {kind} on the same heads{remedy}", token)
        return dataclasses.replace(heads, **{kind: part})

    def bias_sum(self, first: Part) -> BiasSum:
        """Returns the sum of `first` and the biases after '&'."""
        start, terms = self.tokens[self.at], [first]
        while self.take("&"):
            terms.append(self.part(REGISTRY))
        biases = tuple(term for term in terms if isinstance(term, Bias))
        if len(biases) < len(terms):
            raise self.fail("'&' adds biases; '+' joins parts of different kinds", start)
        try:
            return BiasSum(biases)
        except ValueError as error:
            raise self.fail(str(error), start) from None

    def part(self, table: dict[str, type]):
        """Returns the part (or RoPE scaling) at this token."""
        kind, name, _ = token = self.tokens[self.at]
        if kind != "name":
            raise self.fail(f"expected an encoding, found {_short(name)!r}")
        if name not in table:
            if name in PRESETS:
                raise self.fail(
                    f"{name!r} is the name of a whole line and no part of one: {PRESETS[name]}",
                    token,
                )
            known = [*table, "nope"] if table is REGISTRY else list(table)
            known += PRESETS if name == self.text.strip() else ()
            what = "encoding" if table is REGISTRY else "stretch"
            raise self.fail(
                f"unknown {what} {_short(name)!r}{near_names(name[:SHOWN], known)}", token
            )
        self.at += 1
        part, given = table[name], {}
        if self.take("("):
            while True:
                key, value = self.setting(name, {f.name: f for f in dataclasses.fields(part)})
                if key in given:
                    raise self.fail(f"{name}: {key} is set twice")
                given[key] = value
                if self.take(")"):
                    break
                self.expect(",")
        return part(**given)

    def setting(self, name: str, fields: dict[str, dataclasses.Field]):
        """Returns the name and value of the setting at this token."""
        token = self.tokens[self.at]
        if token[0] != "name" or token[1] not in fields:
            near = near_names(token[1][:SHOWN], list(fields))
            raise self.fail(f"{name} has no setting {_short(token[1])!r}{near}", token)
        self.at += 1
        self.expect("=")
        return token[1], self.value(name, fields[token[1]])

    def value(self, name: str, field: dataclasses.Field):
        """Returns the value at this token; ValueError if it does not have the field's type."""
        kind, text, _ = token = self.tokens[self.at]
        if "RopeScaling" in str(field.type) and (kind, text) == ("name", "none"):
            self.at += 1
            return None
        if "RopeScaling" in str(field.type):
            return self.part(ROPE_SCALINGS)
        if isinstance(field.default, tuple) and self.take("["):
            numbers: list[float] = []
            while not self.take("]"):
                if numbers:
                    self.expect(",")
                numbers.append(self.number(name, field, float))
            return tuple(numbers)
        if kind == "name" and text in ("true", "false") and isinstance(field.default, bool):
            self.at += 1
            return text == "true"
        if kind == "name" and (isinstance(field.default, str) or "str" in str(field.type)):
            self.at += 1
            share = "int" in str(field.type) and self.take("/")  # a length: L or L/8
            return f"{text}/{self.number(name, field, int)}" if share else text
        if "int | str" in str(field.type):
            return self.number(name, field, int)
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            return self.number(name, field, type(field.default))
        raise self.fail(_cannot_be(name, field, text), token)

    def number(self, name: str, field: dataclasses.Field, kind: type):
        """Returns the number at this token."""
        token = self.tokens[self.at]
        try:
            value = kind(token[1]) if kind is int else float(token[1])
        except ValueError:
            raise self.fail(_cannot_be(name, field, token[1]), token) from None
        if token[0] != "number":  # float() accepts the words nan and inf
            raise self.fail(_cannot_be(name, field, token[1]), token)
        self.at += 1
        return value
