"""Text of plans: the summary of one plan, a table of many, and a comparison of two."""

from collections.abc import Mapping, Sequence

_GIB = 2**30
_PARTS = ("projections", "mlp", "attention", "head")


def summary(row: Mapping) -> str:
    """Returns a plan (a row of `plan_step`) as lines of text."""
    memory, seconds = row["memory"], row["seconds"]
    mesh = ", ".join(f"{axis} {n}" for axis, n in row["mesh"].items()) or "one device"
    needed, executed = row["flops_needed"], row["flops_executed"]
    pieces = "at once" if row["loss_chunks"] == 1 else f"in {row['loss_chunks']} pieces"
    lines = [
        f"{row['scheme']}, {row['parameters']:,} parameters, {row['vocab_size']:,} ids, "
        f"{row['batch_size']} x {row['length']:,} tokens a step",
        f"on {row['devices']} x {row['chip']} ({row['topology']}), mesh {mesh}; compiled in "
        f"{row['compile_seconds']:.0f} s ({row['compile_cpu_seconds']:.0f} s of CPU) by "
        f"{row['compiler']}",
        f"attention        {'; '.join(row['attention'])}",
        f"layers           {'in a loop' if row['scan_layers'] else 'one by one'}, remat "
        f"{row['remat']}; loss over the vocabulary {pieces}",
        f"memory a device  {_gib(memory['peak'])} of {_gib(memory['of_chip'])} "
        f"GiB{'' if memory['fits'] else ': DOES NOT FIT'} (arguments {_gib(memory['arguments'])}, "
        f"temporaries {_gib(memory['temporaries'])}, results {_gib(memory['results'])}, code "
        f"{_gib(memory['code'])})",
        f"FLOPs needed     {needed['total']:.3e} a step ({_shares(needed)}); 6 N D = "
        f"{row['flops_6nd']:.3e}",
        f"FLOPs executed   {executed['total']:.3e} ({_shares(executed)})",
        f"memory traffic   {row['memory_traffic_bytes'] / 1e9:.1f} GB a device{_caveat(row)}",
    ]
    for kind, sent in row["collectives"].items():
        to_other_hosts = sent["sent_between_hosts_bytes"]
        lines.append(
            f"{kind:<19}{sent['count']:,} a step, {sent['payload_bytes'] / 1e9:.3f} GB, each "
            f"device sends {sent['sent_bytes'] / 1e9:.3f} GB"
            + (f", {to_other_hosts / 1e9:.3f} of it to other hosts" if to_other_hosts else "")
        )
    lines += [
        f"time at peak     compute {_ms(seconds['compute'])}, memory {_ms(seconds['memory'])}, "
        f"network {_ms(seconds['network'])}",
        f"step             at least {_ms(seconds['step'])}, bound by {row['bound_by']}: at most "
        f"{row['tokens_per_second']:,.0f} tokens/s, MFU {row['mfu']:.0%}",
    ]
    return "\n".join(lines)


def _shares(parts: Mapping) -> str:
    return ", ".join(f"{name} {parts[name] / parts['total']:.0%}" for name in _PARTS)


def _caveat(row: Mapping) -> str:
    loops = row["loops_counted_once"]
    return f" ({loops} loops whose length the data decide are counted once)" if loops else ""


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms" if seconds >= 1e-4 else f"{1e6 * seconds:,.1f} us"


def table(rows: Sequence[Mapping]) -> str:
    """Returns plans as a Markdown table, one line each."""
    names = (
        "config",
        "scheme",
        "tokens",
        "batch",
        "chips",
        "mesh",
        "attention",
        "scan",
        "remat",
        "chunks",
        "arguments GiB",
        "temporaries GiB",
        "peak GiB",
        "of GiB",
        "PFLOPs needed",
        "executed",
        "compute ms",
        "memory ms",
        "network ms",
        "step >= ms",
        "MFU <=",
        "compile s",
        "CPU s",
    )
    lines = [names, ["---"] * len(names)]
    for row in rows:
        m, s = row["memory"], row["seconds"]
        lines.append(
            [
                f"{row['parameters'] / 1e9:.2f}B",
                f"`{row['scheme']}`",
                f"{row['length']:,}",
                str(row["batch_size"]),
                f"{row['devices']} x {row['chip']}",
                " ".join(f"{a}:{n}" for a, n in row["mesh"].items()),
                ", ".join(dict.fromkeys(path.split(" ")[0] for path in row["attention"])),
                "yes" if row["scan_layers"] else "no",
                row["remat"],
                str(row["loss_chunks"]),
                *(_gib(m[name]) for name in ("arguments", "temporaries", "peak", "of_chip")),
                f"{row['flops_needed']['total'] / 1e15:.2f}",
                f"{row['flops_executed']['total'] / 1e15:.2f}",
                *(f"{1e3 * s[name]:,.0f}" for name in ("compute", "memory", "network", "step")),
                f"{row['mfu']:.0%}",
                f"{row['compile_seconds']:.0f}",
                f"{row['compile_cpu_seconds']:.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def comparison(row: Mapping, before: Mapping) -> str:
    """Returns one line: memory and time as multiples of an earlier plan on the same chips."""
    token = [r["seconds"]["step"] / (r["batch_size"] * r["length"]) for r in (row, before)]
    return (
        f"beside {before['scheme']} at {before['batch_size']} x {before['length']:,}: memory x "
        f"{row['memory']['peak'] / before['memory']['peak']:.3f} (temporaries x "
        f"{row['memory']['temporaries'] / before['memory']['temporaries']:.3f}), time per token x "
        f"{token[0] / token[1]:.3f}"
    )
