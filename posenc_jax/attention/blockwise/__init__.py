"""Blockwise attention: online softmax over tiles, in memory linear in length."""
