"""Independent references in float64 NumPy: one vector, one pair, plain loops; no import from the package."""

import math

import numpy as np


def rope_frequency(i: int, dim: int, base: float) -> float:
    """RoFormer eq. 15, zero-based pair i."""
    return base ** (-2 * i / dim)


def rope_vector(x, position, base=10_000.0, pairing="half", rotary_dim=None):
    """Rotates one head's vector, pair by pair, with a 2 x 2 matrix each."""
    x = np.asarray(x, np.float64)
    dim = len(x) if rotary_dim is None else rotary_dim
    out = x.copy()
    for i in range(dim // 2):
        a, b = (i, i + dim // 2) if pairing == "half" else (2 * i, 2 * i + 1)
        angle = float(position) * rope_frequency(i, dim, base)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        out[[a, b]] = turn @ x[[a, b]]
    return out


def alibi_slopes(n):
    """The recursive definition of the ALiBi paper's code."""

    def power_of_two(n):
        start = 2.0 ** (-(2.0 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(n).is_integer():
        return power_of_two(n)
    closest = 2 ** math.floor(math.log2(n))
    return power_of_two(closest) + alibi_slopes(2 * closest)[0::2][: n - closest]


def mpt_slopes(n, most=8.0):
    """MPT's published rule: slopes of the power of two at or above n; every second first, then the others, n
    of them.
    """
    above = 2 ** math.ceil(math.log2(n))
    slopes = [2.0 ** (-most * (h + 1) / above) for h in range(above)]
    return slopes if above == n else (slopes[1::2] + slopes[::2])[:n]


def sinusoids_of_fairseq(position, dim):
    """SinusoidalPositionalEmbedding.get_embedding with padding_idx 1: sines, then cosines."""
    half = dim // 2
    angles = [(position + 2) * math.exp(-i * math.log(10_000) / (half - 1)) for i in range(half)]
    return np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])


def sinusoid(position, dim, base=10_000.0):
    """Transformer 2017, sec. 3.5."""
    return np.array(
        [
            (math.sin if d % 2 == 0 else math.cos)(position / base ** (2 * (d // 2) / dim))
            for d in range(dim)
        ]
    )


def attention(q_TNH, k_SNH, v_SNH, bias, visible, tau=lambda head, i: 1.0, sink_N=None):
    """Softmax attention of one sequence; bias(head, i, j), visible(i, j) on indices; zero if blind.

    A sink is one more logit of a row, as gpt-oss has it: its weight is computed and thrown away.
    """
    T, N, H = q_TNH.shape
    out = np.zeros((T, N, v_SNH.shape[-1]))
    for n in range(N):
        for i in range(T):
            keys = [j for j in range(len(k_SNH)) if visible(i, j)]
            if not keys:
                continue
            logits = np.array(
                [
                    tau(n, i) * float(q_TNH[i, n] @ k_SNH[j, n]) / math.sqrt(H) + bias(n, i, j)
                    for j in keys
                ]
            )
            if sink_N is not None:
                logits = np.append(logits, sink_N[n])
            weights = np.exp(logits - logits.max())
            weights = (weights / weights.sum())[: len(keys)]
            out[i, n] = sum(w * v_SNH[j, n] for w, j in zip(weights, keys, strict=True))
    return out


def rms_norm(x, gain, epsilon=1e-6):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gain


def token_shift(x_TKH, now_K, before_K):
    """KV shifting attention, eq. 5: a x_t + b x_(t-1) per head; zero stands before the first token."""
    out = np.zeros_like(x_TKH)
    for t in range(len(x_TKH)):
        for n in range(x_TKH.shape[1]):
            before = x_TKH[t - 1, n] if t else np.zeros_like(x_TKH[t, n])
            out[t, n] = now_K[n] * x_TKH[t, n] + before_K[n] * before
    return out


def silu(x):
    return x / (1 + np.exp(-x))


def decoder_logits(params, tokens_T, heads, positional_attention, swiglu=True):
    """A whole decoder on one sequence, float64: `positional_attention(layer, q, k, v)` is handed in."""
    p = {k: _float64(v) for k, v in params.items()}
    x = p["embedding_VD"][tokens_T]
    layer = 0
    while f"layer_{layer}" in p:
        b = p[f"layer_{layer}"]
        a = b["attention"]
        y = rms_norm(x, b["attention_gain_D"])
        q = np.einsum("td,dnh->tnh", y, a["query_DNH"])
        k = np.einsum("td,dnh->tnh", y, a["key_DKH"])
        v = np.einsum("td,dnh->tnh", y, a["value_DKH"])
        if "key_now_K" in a:
            k = token_shift(k, a["key_now_K"], a["key_before_K"])
            v = token_shift(v, a["value_now_K"], a["value_before_K"])
        if "query_gain_H" in a:
            q, k = rms_norm(q, a["query_gain_H"]), rms_norm(k, a["key_gain_H"])
        k, v = (np.repeat(z, heads // z.shape[1], axis=1) for z in (k, v))
        out = positional_attention(layer, q, k, v)
        if "gate_DNH" in a:
            out = out / (1 + np.exp(-np.einsum("td,dnh->tnh", y, a["gate_DNH"])))
        x = x + np.einsum("tnh,nhd->td", out, a["out_NHD"])
        y = rms_norm(x, b["mlp_gain_D"])
        up = y @ b["mlp"]["up_DF"]
        x = x + (silu(y @ b["mlp"]["gate_DF"]) * up) @ b["mlp"]["down_FD"]
        layer += 1
    x = rms_norm(x, p["final_gain_D"])
    return x @ p.get("head_VD", p["embedding_VD"]).T


def _float64(tree):
    if isinstance(tree, dict):
        return {k: _float64(v) for k, v in tree.items()}
    return np.asarray(tree, np.float64)


def ntk_base(base, factor, dim):
    """base' = base * s^(d / (d - 2))."""
    return base * math.exp(math.log(factor) * dim / (dim - 2))


def yarn_frequencies(dim, base, length, factor, beta_fast=32.0, beta_slow=1.0, truncate=True):
    """YaRN by its prose: find where a pair turns beta times, keep, interpolate or blend each pair."""

    def pair_that_turns(
        times,
    ):  # solve length * base^(-2r/dim) / (2 pi) = times for 2r ... as an index
        return dim * math.log(length / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    out = []
    for i in range(dim // 2):
        share = min(max((i - low) / (high - low), 0.0), 1.0)
        freq = rope_frequency(i, dim, base)
        out.append(share * freq / factor + (1 - share) * freq)
    return np.array(out)


def yarn_amplitude(factor, mscale=1.0, mscale_all_dim=0.0):
    """DeepSeek-V2's rotary embedding: m(mscale) / m(mscale_all_dim) on cos and sin, m(x) = 0.1 x ln s + 1."""
    if factor <= 1:
        return 1.0
    return (0.1 * mscale * math.log(factor) + 1) / (0.1 * mscale_all_dim * math.log(factor) + 1)


def llama3_frequencies(dim, base, factor, low, high, length):
    """Pair by pair, by wavelength."""
    out = []
    for i in range(dim // 2):
        freq = rope_frequency(i, dim, base)
        wave = 2 * math.pi / freq
        if wave < length / high:
            out.append(freq)
        elif wave > length / low:
            out.append(freq / factor)
        else:
            smooth = (length / wave - low) / (high - low)
            out.append((1 - smooth) * freq / factor + smooth * freq)
    return np.array(out)


def t5_bucket(distance, buckets=32, longest=128):
    """One causal distance at a time; whole-number logarithms by exact comparison of powers."""
    exact = buckets // 2
    if distance < exact:
        return distance
    bucket = exact
    ratio = longest / exact
    while bucket + 1 < buckets and distance / exact >= ratio ** (
        (bucket + 1 - exact) / (buckets - exact)
    ) * (1 - 1e-12):
        bucket += 1
    return bucket


def t5_buckets(distances, buckets, longest):
    """All distances at once: bucket e + k begins where (d/e)^n reaches (longest/e)^k, found by halving, in
    integers.
    """
    e, n = buckets // 2, buckets - buckets // 2

    def first(k):
        low, high = e, longest
        while low < high:
            middle = (low + high) // 2
            if middle**n * e**k >= longest**k * e**n:
                high = middle
            else:
                low = middle + 1
        return low

    out = np.where(distances < e, distances, e)
    for k in range(1, n):
        out[distances >= first(k)] = e + k
    return out


def sandwich(distance, head, heads, dim=128, base=10_000.0):
    """Chi et al. 2022: sum of cosines less their number, compressed by 8 (head + 1) / heads."""
    total = sum(math.cos(distance / base ** (2 * i / dim)) for i in range(1, dim // 2 + 1))
    return (total - dim / 2) / (8 * (head + 1) / heads)


def xpos_logit(q, k, i, j, train_length, scale=512.0, gamma=0.4, base=10_000.0):
    """Sum over pairs of zeta^((i-j)/s) Re(q conj(k) e^(i (i-j) freq)), half pairing."""
    h = len(q) // 2
    total = 0.0
    for p in range(h):
        zeta = (p / h + gamma) / (1 + gamma)
        a, b = complex(q[p], q[p + h]), complex(k[p], k[p + h])
        angle = (i - j) * rope_frequency(p, 2 * h, base)
        turn = complex(math.cos(angle), math.sin(angle))
        total += zeta ** ((i - j) / scale) * (a * turn * b.conjugate()).real
    return total


def forget_bias(log_gates, i, j):
    """Lin et al. 2025, eq. 6: the log-gates after j, up to and including i, one by one."""
    total = 0.0
    for step in range(j + 1, i + 1):
        total += float(log_gates[step])
    return total


def log_sigmoid(x):
    return -math.log1p(math.exp(-float(x)))


def linear_attention(q_TNH, k_TNH, v_TNH, visible, turn):
    """RoFormer eq. 19 with phi = elu + 1: turn(vector, index) rotates, in the numerator alone."""

    def phi(x):
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

    T, N, _ = q_TNH.shape
    out = np.zeros_like(v_TNH)
    for n in range(N):
        for i in range(T):
            over, under = np.zeros(v_TNH.shape[-1]), 0.0
            for j in range(T):
                if visible(i, j):
                    q, k = phi(q_TNH[i, n]), phi(k_TNH[j, n])
                    over += float(turn(q, i) @ turn(k, j)) * v_TNH[j, n]
                    under += float(q @ k)
            if under:
                out[i, n] = over / under
    return out


def rope_by_angles(x, angles, pairing="half"):
    """One head's vector with a given angle for every pair, by complex multiplication."""
    x = np.asarray(x, np.float64)
    h = len(x) // 2
    a, b = (x[:h], x[h:]) if pairing == "half" else (x[0::2], x[1::2])
    turned = (a + 1j * b) * np.exp(1j * np.asarray(angles, np.float64))
    if pairing == "half":
        return np.concatenate([turned.real, turned.imag])
    return np.stack([turned.real, turned.imag], axis=-1).ravel()


def axial_angles(position, width, dim, base):
    """Heo et al. 2024, eq. 12: dim/4 frequencies base^(-4i/dim) for the column, the same for the row."""
    row, column = divmod(position, width)
    freq = [base ** (-4 * i / dim) for i in range(dim // 4)]
    return [column * f for f in freq] + [row * f for f in freq]


def scale_invariant(distance, t):
    """Anson et al. 2025: factor and shift of a content logit, a^2 = 2 ln(1 + d/t) + 1, m = 1 - a^2."""
    square = 2 * math.log(1 + distance / t) + 1
    return math.sqrt(square), 1 - square


def pope_logit(q, k, i, j, delta, base=10_000.0):
    """Gopalakrishnan et al. 2025, eq. 6, over the root of the head dim: magnitudes at phases, query at i, key
    at j.
    """

    def softplus(x):
        return max(x, 0.0) + math.log1p(math.exp(-abs(x)))

    d = len(q)
    return sum(
        softplus(q[c]) * softplus(k[c]) * math.cos((j - i) * base ** (-c / d) + delta[c])
        for c in range(d)
    ) / math.sqrt(d)


def ssmax(s, keys):
    """Nakanishi 2025, eq. 2: every logit times s ln n, n keys in sight."""
    return s * math.log(keys)


def adaptive_scale(x, beta, gamma, keys, floor=1.0, most=2.0):
    """deep-spin/asentmax, "adapt-softplus-tanh": `beta`, `gamma` are (weights, bias); one token, one head."""
    scale = math.log1p(math.exp(float(x @ beta[0]) + beta[1]))
    exponent = most * math.tanh(float(x @ gamma[0]) + gamma[1])
    return floor + scale * math.log(keys + 1) ** exponent


def nested_means(seeds, draws, random):
    """Means of the two-level bootstrap, a number at a time: seeds, then each stratum's own instances.

    seeds: by seed, by stratum, pairs (total, weight). A stratum's value is sum(totals) / sum(weights).
    """
    means = []
    for _ in range(draws):
        values = []
        for _ in seeds:
            strata = seeds[random.integers(len(seeds))]
            shares = []
            for pairs in strata:
                drawn = [pairs[random.integers(len(pairs))] for _ in pairs]
                shares.append(sum(t for t, _ in drawn) / sum(w for _, w in drawn))
            values.append(sum(shares) / len(shares))
        means.append(sum(values) / len(values))
    return np.array(means)
