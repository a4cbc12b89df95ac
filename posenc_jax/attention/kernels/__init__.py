"""Attention kernels for GPUs and TPUs, and bias folding for kernels that take no bias."""
