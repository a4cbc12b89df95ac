"""Independent references of the probes in float64: one query, one key at a time; nothing of the package."""

import math

import numpy as np


def contents(q_TNH, k_SKH, head_dim, tau=lambda n, i, j: 1.0):
    """Content logits [N, T, S]: head n of N reads key/value head n * K // N; PoPE has more columns than
    head_dim.
    """
    (T, N, _), (S, K, _) = q_TNH.shape, k_SKH.shape
    out = np.zeros((N, T, S))
    for n in range(N):
        for i in range(T):
            for j in range(S):
                dot = float(np.dot(q_TNH[i, n].astype(np.float64), k_SKH[j, n * K // N]))
                out[n, i, j] = tau(n, i, j) * dot / math.sqrt(head_dim)
    return out


def softmax(logits):
    """Weights of one query over the keys it sees."""
    raw = np.exp(logits - np.max(logits))
    return raw / raw.sum()


def watched(content_NTS, bias_NTS, first, windows, sink_N=None):
    """Every reduction of one sequence, by walking over its pairs; heads weigh their last windows[n] keys.

    A sink is one more outcome of each query.
    """
    N, T, _ = content_NTS.shape
    logit_NTS = content_NTS.astype(np.float64) + bias_NTS
    weight, content, count = np.zeros((N, T)), np.zeros((N, T)), np.zeros(T)
    entropy, sink = np.zeros((N, T - first)), np.zeros((N, T - first))
    blind = {"float32": np.zeros((N, T - first)), "bfloat16": np.zeros((N, T - first))}
    diagonals = [[[] for _ in range(T)] for _ in range(N)]
    for n in range(N):
        for i in range(first, T):
            low = max(0, i + 1 - windows[n])
            row = [*logit_NTS[n, i, low : i + 1], *([] if sink_N is None else [sink_N[n]])]
            w = np.concatenate([np.zeros(low), softmax(row)])
            entropy[n, i - first] = -sum(x * math.log(x) for x in w if x > 0)
            sink[n, i - first] = w[0]
            top = max(row)
            for name, smallest in (("float32", 2.0**-149), ("bfloat16", 2.0**-133)):
                zero = [
                    math.exp(max(z - top, -700)) < smallest for z in logit_NTS[n, i, low : i + 1]
                ]
                blind[name][n, i - first] = sum(zero) / (i + 1 - low)
            for j in range(i + 1):
                weight[n, i - j] += w[j]
                content[n, i - j] += content_NTS[n, i, j]
                diagonals[n][i - j].append(logit_NTS[n, i, j])
                count[i - j] += n == 0
    mean = np.array([[np.mean(d) for d in head] for head in diagonals])
    spread = np.array(
        [[np.sum((np.array(d) - np.mean(d)) ** 2) for d in head] for head in diagonals]
    )
    return {
        "weight": weight,
        "content": content,
        "mean": mean,
        "spread": spread,
        "entropy": entropy,
        "sink": sink,
        "blind": blind,
        "count": count,
    }


def relative_structure(logit_pairs):
    """1 - Var(z - f(i - j)) / Var(z) from (distance, z) pairs, by its definition."""
    distance, z = (np.array(x, np.float64) for x in zip(*logit_pairs, strict=True))
    f = {d: z[distance == d].mean() for d in set(distance)}
    left = z - np.array([f[d] for d in distance])
    return 1 - left.var() / z.var()


def needle(content_S, bias_S, query, key, window, sinks=()):
    """(weight, margin, reach) of one query of one head; the last `window` keys up to the query are in
    sight.
    """
    seen = range(max(0, query + 1 - window), query + 1)
    weights = softmax([*(content_S[j] + bias_S[j] for j in seen), *sinks])
    weight = weights[key - seen[0]] if key in seen else 0.0
    others = [math.exp(content_S[j] - content_S[key]) for j in range(query + 1) if j != key]
    margin = -math.log(sum(others) / len(others))
    reach = -1
    for d in range(len(seen)):  # a needle at distance d, all other keys alike
        there = math.exp(margin + bias_S[query - d])
        rest = sum(math.exp(bias_S[j]) for j in seen if j != query - d)
        if there >= rest:
            reach = d
    return weight, margin, reach
