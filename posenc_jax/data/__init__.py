"""Text, tokens and batches; every example is a pure function of (seed, index).

    files.py     which documents a folder of text holds, and the split each belongs to
    corpora.py   TFDS builders of our own, and `open_corpus` for these and for TFDS's sets by name
    public.py    TFDS's own sets, read from a prepared folder without TensorFlow
    tokens.py    bytes, or a SentencePiece model
    stream.py    a split as one flat array of token ids on disk
    packing.py   windows and packed documents: positions, segments, weights
    positions.py random positions in training
    pipeline.py  shuffled, mixed, sharded batches whose only state is the step number

This package imports nothing else of posenc_jax. It loads none of its modules by itself: TFDS and
grain cost a second, and whoever only packs documents needs neither.
"""
