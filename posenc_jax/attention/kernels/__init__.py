"""Attention kernels for GPUs and TPUs, and what lets them serve positional biases."""
