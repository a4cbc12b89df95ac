"""Every fault by its name."""

import difflib

from posenc_jax.faults import chains, damage, disk, inputs, kills, poison, workers

FAULTS = {
    "chain": chains.killed_in_chains,
    "kill": kills.killed_at_any_moment,
    "save": kills.killed_in_a_save,
    "stop": kills.stopped,
    "two_trainers": kills.doubled,
    "meshes": kills.moved,
    "flip": damage.flipped,
    "truncate": damage.truncated,
    "delete": damage.deleted,
    "hostile": damage.hostile,
    "last_damaged": damage.gone_on,
    "all_damaged": damage.all_damaged,
    "stale": damage.stale,
    "disk_full": disk.full,
    "read_only": disk.read_only,
    "nan": poison.one_device,
    "nan_in_a_row": poison.in_a_row,
    "spike": poison.spike,
    "workers": workers.lost_or_stopped,
    "settings": inputs.settings,
    "settings_typed": inputs.settings_typed,
    "corpora": inputs.corpora,
}
CHEAP = ("flip", "truncate", "delete", "hostile", "settings")  # milliseconds each


def chosen(only: list[str] | None) -> list[str]:
    """Returns names of faults; ValueError for one that is none."""
    for name in only or ():
        if name not in FAULTS:
            near = difflib.get_close_matches(name, FAULTS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(FAULTS)}"
            raise ValueError(f"--only={name} is no fault; {hint}")
    return list(only or FAULTS)
