"""What the words on the page mean."""

DEFINITIONS = (
    ("L, k, d", "Training length, evaluation length as a multiple of it, and distance in tokens "
                "from the question back to the needle; far means d > L."),
    ("bpb", "Bits per byte: summed negative log-likelihood in bits over the bytes that the scored "
            "tokens stand for."),
    ("E1", "bpb_nonoverlap(k): held-out text cut into disjoint segments of kL tokens, every token "
           "scored; comparable with the ALiBi paper's tables, early tokens have little context."),
    ("E2, E9", "bpb_sliding(k): the same tokens by windows of kL that move on by L/4; early_token_curse "
               "is E1 less E2, what the missing context of early tokens costs."),
    ("E3", "bpb_ctx(c), the primary one: the same targets (the last L/2 tokens of each held-out "
           "document of at least 8L), scored with c tokens of context right before them."),
    ("E4", "nll_pos(i): negative log-likelihood in nats by position in a window of 8L."),
    ("E5", "bpb_key(c): E3 over those targets that a reference run found to need context further back than L."),
    ("E6", "repeat_gain(g): bits per byte of a span of 64 bytes less those of the same span g tokens later."),
    ("E7, E8", "context_gain: bpb_ctx at L less at 4L. bpb_window: E3 at 4L with attention to the last L "
               "tokens alone; window_check is how much more that costs."),
    ("R1 to R10", "Retrieval, scored under teacher forcing: passkey (five digits, chance 1 in 100,000), needles "
                  "(1, 4 or 16 keys, one asked), MQAR (pairs, each asked once), n-gram lookup, copy, variables "
                  "(1, 2 or 4 hops), phone book, latest or first (a key assigned four times), n-back and "
                  "flip-flop, synonym. Chance is 1 in 64 but for the passkey, the phone book (1 in 4,096) and "
                  "flip-flop (1 in 2)."),
    ("above chance", "(accuracy - chance) / (1 - chance): guessing is 0 %, perfect is 100 %."),
    ("Y_R", "Mean above chance of passkey, needles 4 and MQAR 16 at 4L; Y_R_far: the same over needles "
            "further back than L; Y_R_id: the same at L."),
    ("EL_0.85", "The longest context, in tokens, at which a task keeps 0.85 of its score at the shortest, all "
                "shorter ones passing."),
    ("P1 to P5", "Shift error of the logits, relative structure, offset lookup, rotation switched off, share "
                 "of heads with a monotone bias."),
    ("C", "Balanced accuracy of the class of a long text, read whole by a model trained on its first L inputs."),
)  # fmt: skip
