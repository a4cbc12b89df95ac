"""Text, tokens and batches; every example is a pure function of (seed, index).

    document_files.py    text files of a folder, and the split of each
    corpora.py           our TFDS builders, and `open_corpus` for these and for TFDS's sets by name
    tfds_sets.py         TFDS's own sets, read from a prepared folder without TensorFlow
    tokenizers.py        bytes, or a SentencePiece model
    token_stream.py      a split as one flat array of token ids on disk
    packing.py           windows and packed documents: positions, segments, weights
    random_positions.py  random positions in training
    pipeline.py          shuffled, mixed, sharded batches whose only state is the step number
    text_digests.py      names, sizes and SHA-256 of the texts of a corpus

This package imports only `results` of posenc_jax. It imports none of its modules by itself, for
TFDS and grain take a second to import.
"""
