"""How tests compile: programs that are made quickly rather than run quickly.

Most of them run once, on a few numbers, so that making them is what takes time. What a program means
stays as it is. XLA takes flags that it does not know for an error, and its older emitters went after 0.10.
"""

from importlib.metadata import version

QUICK = "--xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
ONE_DEVICE = {"XLA_FLAGS": QUICK}  # for a process that a test starts
