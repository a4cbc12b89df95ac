"""The claims S1 to S14 of the literature: sentence, parts, and the rule of each part."""

from posenc_jax.results.schema import FAR, ID, REACHES
from posenc_jax.study import claim_costs as costs
from posenc_jax.study import claim_measures as m
from posenc_jax.study import seed_comparisons as seeds
from posenc_jax.study.evidence import bpb
from posenc_jax.study.ledger import ClaimPart, LiteratureClaim, not_here

STUDY, LONGTEXT = "configs/studies/claims.py", "configs/studies/longtext.py"
PRESS = "Press et al. 2022 (ALiBi)"
LONGEST = 1024  # S8, in units of L
DELTA = f"{seeds.MARGINS.bpb} bits per byte"
FALLS = f"{m.FALLS} bits per byte"


CLAIMS = (
    LiteratureClaim(
        "S1",
        "ALiBi trained at L and read at 2L matches sinusoids trained at 2L.",
        f"{PRESS}: 1.3B parameters, L = 1,024, perplexity 8.92 against 9.01.",
        (
            ClaimPart(
                "ALiBi's loss at 2L in disjoint segments (E1), less that of sinusoids trained at "
                "2L.",
                f"reproduced below {DELTA}, refuted above.",
                m.against_twice(m.disjoint_loss, "E1 at 2L"),
                STUDY,
            ),
            ClaimPart(
                "The same in sliding windows of 2L (E2). ALiBi's move on by L/4, those of "
                "sinusoids by L/2.",
                f"reproduced below {DELTA}, refuted above.",
                m.against_twice(lambda k: seeds.value_of("bpb_sliding", k), "E2 at 2L"),
                STUDY,
            ),
            ClaimPart(
                "The same at 1.3B parameters.",
                "as above.",
                not_here("such a run takes thousands of GPU hours"),
            ),
        ),
    ),
    LiteratureClaim(
        "S2",
        "It does so with 11 % less training time and 11 % less memory.",
        f"{PRESS}. The time is that to a given perplexity, not that of a step.",
        (
            ClaimPart(
                "Peak memory per device of a planned step, ALiBi at half the length with equally "
                "many tokens.",
                "reproduced from 11 % less, bounded from 1 %, refuted below 1 %.",
                costs.planned_saving(lambda row: row["memory"]["peak"]),
            ),
            ClaimPart(
                "Least time of the same step, from the peaks of the data sheet.",
                "reproduced from 11 % less, bounded from 1 %, refuted below 1 %.",
                costs.planned_saving(lambda row: row["seconds"]["step"]),
            ),
            ClaimPart(
                "Training seconds of ALiBi at L to the last dev loss of sinusoids at 2L, over the "
                "seconds of these. Each reads windows of its own length, so the test is strict.",
                "reproduced below 0.89 in the mean over seeds, refuted above it or where a seed "
                "never arrives.",
                costs.time_to_loss,
                STUDY,
            ),
        ),
    ),
    LiteratureClaim(
        "S3",
        "RoPE and sinusoids fall off past L without help.",
        f"{PRESS}, L = 512 read at 15,512: sinusoidal 406, rotary 79.25, ALiBi 18.31.",
        (
            ClaimPart(
                "RoPE's loss at 4L less that within L.",
                f"reproduced above {FALLS}, refuted below.",
                seeds.risen("rope", FAR, m.FALLS, above=True),
            ),
            ClaimPart(
                "The same of sinusoids.",
                f"reproduced above {FALLS}, refuted below.",
                seeds.risen("sinusoidal", FAR, m.FALLS, above=True),
                STUDY,
            ),
        ),
    ),
    LiteratureClaim(
        "S4",
        "A stretched RoPE needs only 1,000 steps of fine-tuning, without loss of quality.",
        "Chen et al. 2023 (PI): most of the gain by 200 steps, not lossless at short length.",
        (
            ClaimPart(
                "Loss at 4L after 1,000 steps at 4L, less the loss within L before them, for each "
                "stretch and for none.",
                f"reproduced below {DELTA}, refuted above; bounded where the stretches differ.",
                m.every([m.after_tuning(rule, FAR) for rule in ("pi", "ntk", "yarn", "none")]),
                STUDY,
            ),
            ClaimPart(
                "Loss within L after those steps, less that before.",
                f"reproduced below {DELTA}, refuted above; bounded where the stretches differ.",
                m.every([m.after_tuning(rule, ID) for rule in ("pi", "ntk", "yarn")]),
                STUDY,
            ),
        ),
    ),
    LiteratureClaim(
        "S5",
        "Angle scaling carries RoPE from 4k to more than 100k tokens.",
        "Source documents, without a measurement: a factor of 25.",
        (
            ClaimPart(
                "The largest factor F of 2, 4 .. 64 at which the loss at F L, read with factor F "
                f"and without training, is within {FALLS} of that within L, as for all smaller "
                "ones.",
                f"reproduced from {m.FACTOR}, bounded from 2, refuted if 2 fails.",
                m.every([m.kept_factor(rule) for rule in ("pi", "yarn")]),
                STUDY,
            ),
            ClaimPart(
                "RoPE read with YaRN of factor 4, loss at 4L less that of the same reading within "
                "L.",
                f"reproduced below {FALLS}, refuted above.",
                seeds.risen("yarn", FAR, m.FALLS, above=False),
            ),
        ),
    ),
    LiteratureClaim(
        "S6",
        "Dividing the slopes by L'/L lets ALiBi extrapolate further.",
        "Al-Khateeb et al. 2023: m' = m L / L'.",
        (
            ClaimPart(
                "Loss at F L with slopes divided by F = 2, 4, 8, less that with the trained "
                "slopes.",
                "reproduced below 0, refuted above 0; bounded where the factors differ.",
                m.every(
                    [
                        m.scaled_slopes(
                            f, bpb(f), threshold=0.0, above=False, unit=f"{seeds.BITS} at {f}L"
                        )
                        for f in (2, 4, 8)
                    ]
                ),
                STUDY,
            ),
            ClaimPart(
                "Passkeys further back than L in contexts of F L, corrected, the same difference.",
                f"reproduced above {seeds.MARGINS.accuracy} in every seed, refuted in none.",
                m.every(
                    [m.far_passkeys_under_slopes(f, seeds.MARGINS.accuracy) for f in (2, 4, 8)]
                ),
                STUDY,
            ),
        ),
    ),
    LiteratureClaim(
        "S7",
        "ALiBi under-weights very distant tokens: exact distant retrieval suffers.",
        "Source documents; the retrieval horizon of the scheme predicts where.",
        (
            ClaimPart(
                "Passkeys in contexts of 4L, corrected: further back than L, less those within L, "
                "in seeds that find at least half of the near ones.",
                f"reproduced below -{seeds.MARGINS.accuracy}, refuted above.",
                m.of_alibi(
                    seeds.passkey_loss(FAR), -seeds.MARGINS.accuracy, False, "of passkeys at 4L"
                ),
            ),
            ClaimPart(
                "The reach that the content margin of a head predicts under its slope (M10), "
                "against the farthest needle that got half of its weight.",
                f"rank correlation over heads: reproduced from {m.LARGE}, bounded from {m.MEDIUM}.",
                m.predicted_reach,
                STUDY,
            ),
        ),
    ),
    LiteratureClaim(
        "S8",
        "ALiBi works zero-shot at 100,000 tokens and more.",
        "Source documents. Flat perplexity may mean that reading is windowed in effect.",
        (
            ClaimPart(
                "ALiBi's loss at 8L less that within L.",
                f"reproduced below {DELTA}, refuted above.",
                seeds.risen("alibi", 8, seeds.MARGINS.bpb, above=False),
            ),
            ClaimPart(
                "Loss at 4L under a window of L, less that without: what text beyond L gives.",
                f"the claim is reproduced above {DELTA} and refuted below: then text is not used.",
                m.of_alibi(
                    seeds.value_of("window_check", FAR),
                    seeds.MARGINS.bpb,
                    True,
                    f"{seeds.BITS} at 4L",
                ),
            ),
            ClaimPart(
                f"ALiBi's loss at {LONGEST:,} L less that within L.",
                f"reproduced below {DELTA}, refuted above.",
                m.far_alibi(
                    bpb(LONGEST),
                    bpb(ID),
                    seeds.MARGINS.bpb,
                    False,
                    f"{seeds.BITS} at {LONGEST:,} L",
                ),
                STUDY,
            ),
            ClaimPart(
                f"Loss at {LONGEST:,} L under a window of L, less that without.",
                f"the claim is reproduced above {DELTA} and refuted below: then text is not used.",
                m.far_alibi(
                    seeds.value_of("bpb_window", LONGEST),
                    bpb(LONGEST),
                    seeds.MARGINS.bpb,
                    True,
                    f"{seeds.BITS} at {LONGEST:,} L",
                ),
                STUDY,
            ),
            ClaimPart(
                f"Passkeys further back than L in contexts of {LONGEST:,} L, corrected.",
                f"reproduced above {REACHES} in every seed, refuted in none.",
                m.far_passkeys(LONGEST, REACHES),
                STUDY,
            ),
            ClaimPart(
                "The same of a published ALiBi model at 100,000 tokens.",
                "as above.",
                not_here("no published ALiBi checkpoint can be downloaded here; imports take one"),
            ),
        ),
    ),
    LiteratureClaim(
        "S9",
        "RoPE is better than ALiBi on long-text classification.",
        "Source documents; secondary here.",
        (
            ClaimPart(
                "Corrected accuracy of RoPE less that of ALiBi over documents of all lengths.",
                "reproduced above 0, refuted below 0.",
                m.long_documents,
                LONGTEXT,
            ),
        ),
    ),
    LiteratureClaim(
        "S10",
        "RoPE's dot product decays with distance.",
        "Su et al. 2021, sec. 3.4.3; against it, Barbero et al. 2024.",
        (
            ClaimPart(
                "Equal vectors: RoFormer's bound (eq. 37), mean over each octave of distance.",
                "reproduced if it falls in every octave, bounded if it only ends lower than it "
                "began.",
                m.equal_vectors,
            ),
            ClaimPart(
                "Independent Gaussian queries and keys: root mean square of the dot product.",
                "reproduced below 0.5 of its size at distance 1, bounded below 0.95, refuted from "
                "0.95 on.",
                m.random_vectors,
            ),
        ),
    ),
    LiteratureClaim(
        "S11",
        "RoPE costs a negligible part of a step, and ALiBi almost nothing.",
        f"{PRESS}, sec. 3; measured in one attention implementation.",
        (
            ClaimPart(
                "Time of a training step with RoPE, over that without positions: median and "
                "quartiles.",
                "reproduced if the upper quartile adds at most a tenth, which the bench cannot "
                "resolve; bounded if the median does; refuted if the lower quartile adds more.",
                costs.cost_of_step("rope"),
            ),
            ClaimPart("The same with ALiBi.", "as for RoPE.", costs.cost_of_step("alibi")),
            ClaimPart(
                "Attention alone with ALiBi, over the same implementation without a bias.",
                "as for RoPE.",
                costs.attention_with_bias,
            ),
        ),
    ),
    LiteratureClaim(
        "S12",
        "Using RoPE and ALiBi together is redundant and confuses the model.",
        "Source documents; the question of this project, for the sum on every head.",
        (
            ClaimPart(
                "It confuses: loss of the sum within L, less that of the better parent.",
                f"reproduced above {DELTA}, refuted below.",
                m.better_parent(ID, seeds.MARGINS.bpb, above=True),
            ),
            ClaimPart(
                "It is redundant: loss of the sum at 4L, less that of the better parent.",
                f"reproduced above -{DELTA}, refuted below.",
                m.better_parent(FAR, -seeds.MARGINS.bpb, above=True),
            ),
            ClaimPart(
                "It is redundant for retrieval: Y_R at 4L of the sum, less ALiBi's, where RoPE, "
                "ALiBi and the sum acquire recall within L.",
                f"reproduced below {seeds.MARGINS.accuracy}, refuted above; open where an arm does "
                "not acquire recall.",
                m.recall_of_sum,
            ),
        ),
    ),
    LiteratureClaim(
        "S13",
        'Sinusoids are "very poor", RoPE "needs fine-tuning", ALiBi works "zero-shot".',
        "Source documents: the picture of perplexity against length.",
        (
            ClaimPart(
                "RoPE's loss at 4L less ALiBi's.",
                f"reproduced above {FALLS}, refuted below.",
                seeds.compared(
                    ("rope", "alibi"),
                    lambda arms: ((arms["rope"], bpb(FAR)), (arms["alibi"], bpb(FAR))),
                    m.FALLS,
                    above=True,
                    unit=f"{seeds.BITS} at 4L",
                ),
            ),
            ClaimPart(
                "ALiBi's loss at 4L less that within L.",
                f"reproduced below {DELTA}, refuted above.",
                seeds.risen("alibi", FAR, seeds.MARGINS.bpb, above=False),
            ),
            ClaimPart(
                "The loss of sinusoids at 4L less RoPE's.",
                "reproduced above 0, refuted below 0.",
                seeds.compared(
                    ("sinusoidal", "rope"),
                    lambda arms: ((arms["sinusoidal"], bpb(FAR)), (arms["rope"], bpb(FAR))),
                    0.0,
                    above=True,
                    unit=f"{seeds.BITS} at 4L",
                ),
                STUDY,
            ),
        ),
    ),
    LiteratureClaim(
        "S14",
        "Steep and shallow slopes make ALiBi's heads specialise by distance.",
        f"{PRESS}, sec. 3, and source documents.",
        (
            ClaimPart(
                "Rank correlation of slope and mean distance over the heads of a trained run (M1).",
                f"reproduced below -{m.MEDIUM} in every seed, refuted in none, else bounded.",
                m.of_every_alibi(m.distance_follows_slope, -m.MEDIUM, False, "rank correlation"),
                STUDY,
            ),
            ClaimPart(
                "What training adds (M13): growth of the mean distance, trained over untrained, of "
                "the shallow half of the heads less that of the steep half.",
                "reproduced above 0, refuted below 0: then the slopes alone made the difference.",
                m.of_alibi(m.spread_by_training, 0.0, True, "octaves"),
                STUDY,
            ),
        ),
    ),
)
