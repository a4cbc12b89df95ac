"""What the words on the page mean (docs/evaluation.md)."""

from posenc_jax.results.schema import ACQUIRED, FAR, LEARNT, PASSING, REACHES

DEFINITIONS = {
    "L, k, d": "Training length; evaluation length as a multiple of it; distance in tokens from "
    "the question back to the needle. Far means d > L.",
    "bpb": "Bits per byte: summed negative log-likelihood in bits, over bytes of scored tokens.",
    "E1": "bpb_nonoverlap(k): held-out text cut into disjoint segments of kL tokens, every token "
    "scored. It compares with the tables of the ALiBi paper; early tokens have little context.",
    "E2, E9": "bpb_sliding(k): the same tokens by windows of kL that move by L/4. "
    "early_token_curse: E1 less E2, the cost of the short context of early tokens.",
    "E3": "bpb_ctx(c), the primary measure: the same targets (the last L/2 tokens of each held-out "
    "document of at least 8L), scored with c tokens of context before them. In distribution: c = "
    "L/2, whose rows end at L. At c = L the targets lie at positions L to 1.5 L. Extrapolation: c "
    f"= {FAR}L.",
    "E4": "nll_pos(i): negative log-likelihood in nats by position in a window of 8L.",
    "E5": "bpb_key(c): E3 over the targets for which a reference run needed context beyond L.",
    "E6": "repeat_gain(g): bits per byte of a 64-byte span after another order of the same bytes, "
    "less those after the span itself, g tokens back.",
    "E7": f"context_gain: bpb_ctx at L/2 less that at {FAR}L. Above 0 far context is used.",
    "E8": f"bpb_window: E3 at {FAR}L with attention to the last L tokens alone; window_check: its "
    f"excess over E3. Y_R_window: Y_R at {FAR}L under the same mask. No change on both: the arm "
    "is a window.",
    "R1 to R10": "Retrieval, scored under teacher forcing: passkey (five digits), needles (1, 4 or "
    "16 keys, one asked), MQAR (pairs, each asked once), n-gram lookup, copy, variables (1, 2 or 4 "
    "hops), phone book, latest or first (a key assigned four times), n-back and flip-flop, "
    "synonym.",
    "chance": "Accuracy of the best policy that sees every token and binds no value to its key: "
    "passkey 1 in 100,000; needles 1 in their number; MQAR 1 in the values not yet answered (the "
    "last one is given away and not scored); variables 1 in the chains; latest or first 1 in 2; "
    "synonym 1 in 4; of the others, the most frequent or the most recent symbol.",
    "above chance": "(accuracy - chance) / (1 - chance): guessing is 0 %, perfect is 100 %.",
    "Y_R": f"Mean above chance of passkey, needles 4 and MQAR 16 at {FAR}L, uniform over depth. "
    "Y_R_far: over needles further back than L; Y_R_id: at L; least_id: the worst task at L.",
    "acquired, reaches": f"A run has acquired retrieval with {ACQUIRED:g} or more above chance on "
    f"every task of Y_R at L; it reaches with a Y_R_far of {REACHES:g} or more at {FAR}L.",
    f"EL_{PASSING:g}": f"The longest context, in tokens, at which a task keeps {PASSING:g} of its "
    "score above chance at the shortest, all shorter ones passing; none where that score is below "
    f"{LEARNT:g}.",
    "P1 to P5": "Shift error of the logits, relative structure, offset lookup, rotation switched "
    "off, share of heads with a monotone bias.",
    "C": "Balanced accuracy of the class of a long text, read whole by a model that was trained on "
    "its first L inputs.",
}
