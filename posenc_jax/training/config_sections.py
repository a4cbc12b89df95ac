"""The sections of a configuration: every setting, its meaning and its default. Ranges stand in `setting_bounds`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """Shape of the decoder; see `posenc_jax.model.config.ModelConfig`. 0 takes the usual value.

    scheme: a line of the scheme language, or the name of one.

    num_kv_heads: 0 = num_heads. head_dim: 0 = model_dim / num_heads. mlp_dim: 0 = 8/3 of model_dim
    for swiglu and 4 times it for gelu, rounded up to a multiple of 16.
    """

    scheme: str = "rope"
    num_layers: int = 2
    model_dim: int = 64
    num_heads: int = 4
    num_kv_heads: int = 0
    head_dim: int = 0
    mlp_dim: int = 0
    activation: str = "swiglu"
    qk_norm: bool = True
    tied_head: bool = True
    embedding_scale: float = 1.0
    norm_epsilon: float = 1e-6
    dtype: str = "float32"
    attention: str = "auto"
    output_gate: bool = False
    sink_logit: bool = False
    token_shift: bool = False


@dataclasses.dataclass(frozen=True)
class DataSection:
    """What is read.

    Attributes:
      corpus: "python_stdlib", "text_folder", or the name of a TFDS text set (pg19, wiki40b/en, ...).
      folder: the folder of UTF-8 text files, for text_folder.
      data_dir: where prepared corpora and token caches are kept.
      download: let TFDS fetch a public set that is not prepared yet.
      tokenizer: "bytes", or the path of a SentencePiece model.
      retrieval_share: share of training windows that hold retrieval documents.
      passkey_share: share of passkey (R1) among them; the rest is associative recall (R3).
      retrieval_mix: tasks and shares of the retrieval documents, as in
        "passkey,mqar,latest_first:2" (names of posenc_jax/tasks/task_registry.py); empty takes passkey_share.
      offset_share: share of training windows that hold offset lookup (P3), which position alone solves.
      answer_weight: loss weight of an answer token; a text token has 1.
      min_pairs, max_pairs: key-value pairs of a recall document in training.
      pairs_warmup: share of the training in which the most pairs of a recall document grow from min_pairs to
        max_pairs; 0: they are max_pairs from the beginning.
      pair_askings: times that a recall document in training asks each pair, in rounds of an order of their own.
      length_warmup: the longest retrieval document is L divided by these, one after another in equal parts of the
        training: 8,2,1 for L/8, L/2 and L by thirds. mqar has as many pairs as fit, and what does not fit is left out.
      random_positions: k: training reads a document's tokens at positions that are drawn from [0, k L), in rising
        order (`posenc_jax.data.random_positions`); evaluation reads plain ones. 0: plain ones in training too.
      threads: reading threads; they never change the order.
      task: "language", or "classification" of the documents of a labelled corpus: stdlib_definitions,
        stdlib_packages, or a TFDS set with labels (see `posenc_jax.tasks.longtext`).
      text_weight: loss weight of a document's text in classification; its class has 1.
    """

    corpus: str = "python_stdlib"
    folder: str = ""
    data_dir: str = "data"
    download: bool = False
    tokenizer: str = "bytes"
    retrieval_share: float = 0.15
    passkey_share: float = 0.25
    retrieval_mix: str = ""
    offset_share: float = 0.0
    answer_weight: float = 1.0
    min_pairs: int = 2
    max_pairs: int = 8
    pairs_warmup: float = 0.0
    pair_askings: int = 1
    length_warmup: tuple[int, ...] = (1,)
    random_positions: int = 0
    threads: int = 2
    task: str = "language"
    text_weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainSection:
    """How long, how much at a time, and on what mesh.

    Attributes:
      arm: the name of this arm in tables and pictures; empty takes the scheme.
      tier: smoke, cpu, gpu or cluster: what a result of this run may be called.
      length: L, the training context in tokens. batch_size: sequences per step, over all devices.
      accumulation: the batch is taken in this many slices, one gradient step at the end.
      data_devices, fsdp_devices, sequence_devices, model_devices: mesh axes. Rows lie over data x fsdp;
        fsdp also keeps parameters and moments in pieces, gathered where they are used; the tokens of a
        row lie over sequence, and keys go around a ring; heads and hidden units lie over model. 0 data
        devices takes all that are left.
      save_every, log_every: steps. keep: checkpoints kept.
      init_from: workdir of a run whose last sound checkpoint this run's parameters begin as; optimizer,
        step and data order are its own. Empty: they are drawn.
      original_length: L that the scheme is placed with when it is not `length`: that of the run named by
        init_from. 0 takes length.
      dev_every: steps between two measurements of the dev split's loss, a multiple of save_every; the last
        step is measured too, and the checkpoint with the lowest is kept. 0: never.
      dev_windows: windows of `length` tokens it is measured on, the same ones each time.
      wait_for_saves: take no step before a checkpoint is on disk, so that no kill loses more than
        `save_every` steps. False saves time where writing takes long: a kill in the midst of a save then
        loses the interval before it as well.
      bad_steps: abort after this many non-finite updates in a row (each is skipped and counted), whether a
        row of metrics is due then or not.
      stall_seconds: without a finished step, after which all stacks are written down (ten times as long
        for the first step of a leg, which is compiled).
      wandb_project: project on Weights & Biases; empty: none.
      scan_layers: a loop over the layers, each different one compiled once; see docs/memory.md.
      remat: what a layer keeps for its backward pass: "none" of it is made again, "dots", "attention",
        or "full": all of it is (`posenc_jax.model.layer_stack.REMAT`).
      loss_chunks: pieces of the vocabulary that the loss is made in, forward and backward.
      z_loss: weight of the squared logarithm of the softmax sum beside the loss (PaLM: 1e-4).
    """

    arm: str = ""
    tier: str = "cpu"
    seed: int = 0
    steps: int = 1000
    length: int = 64
    batch_size: int = 32
    accumulation: int = 1
    data_devices: int = 0
    fsdp_devices: int = 1
    sequence_devices: int = 1
    model_devices: int = 1
    save_every: int = 500
    log_every: int = 20
    keep: int = 2
    init_from: str = ""
    original_length: int = 0
    dev_every: int = 0
    dev_windows: int = 64
    wait_for_saves: bool = True
    bad_steps: int = 10
    stall_seconds: float = 300.0
    wandb_project: str = ""
    scan_layers: bool = False
    remat: str = "none"
    loss_chunks: int = 1
    z_loss: float = 0.0


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    """Linear warm-up and cosine decay to `final_fraction` of the peak, functions of the step, skipped or not.

    Attributes:
      name: "adamw", or "muon": orthogonalised momentum for the hidden matrices and AdamW for the
        embedding, the gains and whatever a scheme learns (Jordan et al. 2024).
      learning_rate: peak, of AdamW. muon_learning_rate: peak of the hidden matrices under muon.
      weight_decay: of matrices under adamw, of the hidden matrices alone under muon. Gains, biases and
        whatever belongs to a positional encoding are never decayed.
    """

    name: str = "adamw"
    learning_rate: float = 3e-3
    muon_learning_rate: float = 2e-2
    warmup_steps: int = 100
    final_fraction: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class EvaluationSection:
    """What evaluate.py measures by default.

    Attributes:
      multiples: evaluation lengths in units of the training length.
      stretches: held-out stretches of the longest multiple plus L/2, for E1, E3 and E4.
      instances: retrieval instances per task and length.
      pairs: key-value pairs of a recall instance (R3).
      measures: what is measured when nothing is asked for by name: suites, ids or tasks, as in --suite.
      sliding_stretches: stretches scored by sliding windows (E2, E9), which cost many times E1.
      batch_tokens: tokens scored at a time.
    """

    multiples: tuple[int, ...] = (1, 2, 4, 8)
    stretches: int = 128
    instances: int = 200
    pairs: int = 8
    measures: tuple[str, ...] = ("E1", "E3", "E4", "passkey", "mqar")
    sliding_stretches: int = 16
    batch_tokens: int = 16384
