"""Sections of a configuration: every setting with its meaning, its default and its range."""

import dataclasses

from posenc_jax.model.layer_stack import REMAT
from posenc_jax.training.setting_bounds import (
    BETA,
    COUNT,
    RATE,
    SHARE,
    STEPS,
    WEIGHT,
    between,
    one_of,
)


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """Shape of the decoder; 0 takes the usual value.

    `posenc_jax.model.config.Architecture` explains the settings that are not listed here.

    Attributes:
      scheme: a line of the scheme grammar, or the name of one.
      num_layers: decoder layers. model_dim: width of the residual stream. num_heads: query heads.
      num_kv_heads: key/value heads; 0 = num_heads. head_dim: 0 = model_dim / num_heads.
      mlp_dim: 0 = 8/3 of model_dim for gated activations and 4 times it for others, rounded up to a
        multiple of 16.
      vocab_size: rows of the embedding table, at least the number of the tokenizer's ids; 0 = that
        number.
      imports: modules of yours whose encodings the scheme has, filled in by the run; --import loads
        them.
    """

    scheme: str = "rope"
    num_layers: int = between(2, (1, 4096))
    model_dim: int = between(64, COUNT)
    num_heads: int = between(4, (1, 2**16))
    num_kv_heads: int = between(0, (0, 2**16))
    head_dim: int = between(0, (0, 2**16))
    mlp_dim: int = between(0, (0, 2**22))
    activation: str = "swiglu"
    qk_norm: bool = True
    tied_head: bool = True
    embedding_scale: float = between(1.0, (1e-6, 1e6))
    norm_epsilon: float = between(1e-6, (1e-12, 1))
    dtype: str = "float32"
    attention: str = "auto"
    output_gate: bool = False
    sink_logit: bool = False
    token_shift: bool = False
    imports: tuple[str, ...] = ()
    norm: str = "rms"
    norm_position: str = "pre"
    parallel: str = "none"
    final_norm: bool = True
    embedding_norm: bool = False
    biases: tuple[str, ...] = ()
    query_scale: float = between(1.0, (1e-6, 1e6))
    clip_qkv: float = between(0.0, (0, 1e6))
    attention_softcap: float = between(0.0, (0, 1e6))
    logit_softcap: float = between(0.0, (0, 1e6))
    experts: int = between(0, (0, 1024))
    experts_per_token: int = between(0, (0, 1024))
    head_transform: bool = False
    vocab_size: int = between(0, (0, 2**24))


@dataclasses.dataclass(frozen=True)
class DataSection:
    """Text and tasks of the training windows.

    Attributes:
      corpus: "python_stdlib", "text_folder", or the name of a TFDS text set (pg19, wiki40b/en,
        ...).
      folder: the folder of UTF-8 text files, for text_folder.
      data_dir: where prepared corpora and token caches are kept.
      download: let TFDS fetch a public set that is not prepared yet.
      tokenizer: "bytes", or the path of a SentencePiece model.
      retrieval_share: share of training windows that hold retrieval documents.
      passkey_share: share of passkey (R1) among the retrieval documents; the others are associative
        recall (R3).
      retrieval_mix: tasks and shares of the retrieval documents, as in
        "passkey,mqar,latest_first:2" (names of posenc_jax/tasks/task_registry.py); empty takes
        passkey_share.
      offset_share: share of training windows that hold offset lookup (P3), which position alone
        solves.
      answer_weight: loss weight of an answer token; a text token has 1.
      min_pairs, max_pairs: key-value pairs of a recall document in training.
      pairs_warmup: share of the training during which the maximum number of pairs of a recall
        document rises from min_pairs to max_pairs; 0: max_pairs from the start.
      pair_askings: times that a recall document in training asks each pair, in rounds; each round
        has a random order of its own.
      length_warmup: the longest retrieval document is L divided by these numbers, one after another
        in equal parts of the training: 8,2,1 for L/8, L/2 and L by thirds. mqar has as many
        pairs as fit, and tasks that do not fit are left out.
      random_positions: k: training draws the positions of a document's tokens from [0, k L), sorted
        (`posenc_jax.data.random_positions`); evaluation takes consecutive ones. 0: consecutive
        positions in training too.
      end_targets: the last token of a document predicts the tokenizer's end token, with weight 1,
        so that generation learns to end. The dev loss and all measures stay those of text alone.
        False: a document's end is no target.
      threads: reading threads; their number never changes the order of the data.
      task: "language", or "classification" of the documents of a labelled corpus:
        stdlib_definitions, stdlib_packages, or a TFDS set with labels (see
        `posenc_jax.tasks.longtext`).
      text_weight: loss weight of a document's text in classification; its class has 1.
    """

    corpus: str = "python_stdlib"
    folder: str = ""
    data_dir: str = "data"
    download: bool = False
    tokenizer: str = "bytes"
    retrieval_share: float = between(0.15, SHARE)
    passkey_share: float = between(0.25, SHARE)
    retrieval_mix: str = ""
    offset_share: float = between(0.0, SHARE)
    answer_weight: float = between(1.0, WEIGHT)
    min_pairs: int = between(2, COUNT)
    max_pairs: int = between(8, COUNT)
    pairs_warmup: float = between(0.0, SHARE)
    pair_askings: int = between(1, (1, 64))
    length_warmup: tuple[int, ...] = between((1,), COUNT)
    random_positions: int = between(0, (0, 2**20))
    end_targets: bool = False
    threads: int = between(2, (1, 1024))
    task: str = "language"
    text_weight: float = between(0.0, (0, WEIGHT[1]))


@dataclasses.dataclass(frozen=True)
class TrainSection:
    """Length of the training, size of a batch, mesh, checkpoints and logs.

    Attributes:
      arm: the name of this arm in tables and figures; empty takes the scheme.
      tier: smoke, cpu, gpu or cluster: what a result of this run may be called.
      seed: of the initial parameters and of the order of the data. steps: updates of the whole run.
      length: L, the training context in tokens. batch_size: sequences per step, over all devices.
      accumulation: slices that a batch is cut into; the gradients of all slices make one step.
      data_devices, fsdp_devices, sequence_devices, model_devices: mesh axes. Rows are split over
        data x fsdp. Parameters and moments are split over fsdp too, and gathered where they are
        used. The tokens of a row are split over sequence (ring attention), heads and hidden units
        over model. 0 data devices takes all that are left.
      save_every: steps between two checkpoints. log_every: steps between two rows of the log. keep:
        checkpoints kept.
      init_from: workdir of a run whose last undamaged checkpoint gives the initial parameters;
        optimizer, step and data order are new. Empty: random initial parameters.
      original_length: L from which the scheme computes bases and slopes when it is not `length`:
        that of the run named by init_from. 0 takes length.
      dev_every: steps between two measurements of the dev split's loss, a multiple of save_every;
        the last step is measured too, and the checkpoint with the lowest loss is kept. 0: never.
      dev_windows: windows of `length` tokens for this loss, the same ones each time.
      wait_for_saves: take no step before a checkpoint is on disk, so that no kill loses more than
        `save_every` steps. False saves time where writing takes long: a kill during a save then
        loses the interval before it as well.
      bad_steps: abort after this many non-finite updates in a row; each is skipped and counted.
      stall_seconds: time without a finished step after which the stacks of all threads are written
        (ten times as long for the first step of a leg, which is compiled).
      wandb_project: project on Weights & Biases; empty: none.
      scan_layers: a loop over the layers compiles each different layer once; see
        docs/operations/memory.md.
      remat: what the backward pass computes again instead of keeping: "none", "dots", "attention"
        or "full" (`posenc_jax.model.layer_stack.REMAT`).
      loss_chunks: chunks of the vocabulary in the loss, forward and backward.
      z_loss: weight of the squared logarithm of the softmax sum in the loss (PaLM: 1e-4).
    """

    arm: str = ""
    tier: str = one_of("cpu", "smoke", "cpu", "gpu", "cluster")
    seed: int = between(0, (0, 2**32 - 1))  # a key holds 32 bits: 2**32 would equal seed 0
    steps: int = between(1000, STEPS)
    length: int = between(64, (8, 2**30))
    batch_size: int = between(32, COUNT)
    accumulation: int = between(1, COUNT)
    data_devices: int = between(0, (0, 2**20))
    fsdp_devices: int = between(1, COUNT)
    sequence_devices: int = between(1, COUNT)
    model_devices: int = between(1, COUNT)
    save_every: int = between(500, STEPS)
    log_every: int = between(20, STEPS)
    keep: int = between(2, COUNT)
    init_from: str = ""
    original_length: int = between(0, (0, 2**30))
    dev_every: int = between(0, (0, STEPS[1]))
    dev_windows: int = between(64, COUNT)
    wait_for_saves: bool = True
    bad_steps: int = between(10, STEPS)
    stall_seconds: float = between(300.0, (0.1, 1e9))
    wandb_project: str = ""
    scan_layers: bool = False
    remat: str = one_of("none", *REMAT)
    loss_chunks: int = between(1, (1, 4096))  # chunks of 64 ids in the largest vocabularies
    z_loss: float = between(0.0, (0, 1e3))


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    """Optimizer and its schedule: linear warm-up, cosine decay to `final_fraction` of the peak.

    Attributes:
      name: "adamw", or "muon": orthogonalised momentum for the hidden matrices and AdamW for the
        embedding, the gains and whatever a scheme learns (Jordan et al. 2024).
      learning_rate: peak, of AdamW. muon_learning_rate: peak of the hidden matrices under muon.
      warmup_steps: steps of the linear warm-up. final_fraction: last rate as a share of the peak.
      beta1, beta2: decay of Adam's two moments. epsilon: added to the root of the second moment.
      clip_norm: largest norm of the gradient of all parameters; a larger one is scaled down to it.
      weight_decay: of matrices under adamw, of the hidden matrices alone under muon. Gains, biases
        and the parameters of a positional encoding are never decayed.
    """

    name: str = one_of("adamw", "adamw", "muon")
    learning_rate: float = between(3e-3, RATE)
    muon_learning_rate: float = between(2e-2, RATE)
    warmup_steps: int = between(100, (0, STEPS[1]))
    final_fraction: float = between(0.1, SHARE)
    beta1: float = between(0.9, BETA)
    beta2: float = between(0.95, BETA)
    epsilon: float = between(1e-8, (1e-30, 1))
    weight_decay: float = between(0.1, (0, 1e3))
    clip_norm: float = between(1.0, (1e-6, 1e12))


@dataclasses.dataclass(frozen=True)
class EvaluationSection:
    """What evaluate.py measures by default.

    Attributes:
      multiples: evaluation lengths in units of the training length.
      stretches: held-out stretches of the longest multiple plus L/2, for E1, E3 and E4.
      instances: retrieval instances per task and length.
      pairs: key-value pairs of a recall instance (R3).
      measures: default measures: suites, ids or tasks, as in --suite.
      sliding_stretches: stretches scored by sliding windows (E2, E9), which cost many times E1.
      batch_tokens: tokens scored at a time.
    """

    multiples: tuple[int, ...] = between((1, 2, 4, 8), COUNT)
    stretches: int = between(128, COUNT)
    instances: int = between(200, COUNT)
    pairs: int = between(8, COUNT)
    measures: tuple[str, ...] = ("E1", "E3", "E4", "passkey", "mqar")
    sliding_stretches: int = between(16, COUNT)
    batch_tokens: int = between(16384, (1, 2**31))
