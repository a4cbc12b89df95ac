"""Evaluation of a checkpoint: perplexity past L, retrieval, classification and probes."""
