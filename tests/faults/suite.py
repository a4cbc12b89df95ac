"""Registry of the injected faults."""

from posenc_jax.results.near_names import near_names

from faults import (
    bad_inputs,
    checks,
    corrupted_checkpoints,
    disk,
    kills,
    non_finite,
    readers,
    repeated_kills,
    workers,
)

FAULTS = {
    "chain": repeated_kills.killed_in_chains,
    "kill": kills.killed_at_any_moment,
    "save": kills.killed_in_a_save,
    "stop": kills.stopped,
    "two_trainers": kills.doubled,
    "meshes": kills.moved,
    "flip": corrupted_checkpoints.flipped,
    "truncate": corrupted_checkpoints.truncated,
    "delete": corrupted_checkpoints.deleted,
    "hostile": corrupted_checkpoints.hostile,
    "last_damaged": corrupted_checkpoints.gone_on,
    "all_damaged": corrupted_checkpoints.all_damaged,
    "stale": corrupted_checkpoints.stale,
    "disk_full": disk.full,
    "inodes": disk.out_of_inodes,
    "read_only": disk.read_only,
    "turns_read_only": disk.turned_read_only,
    "power": checks.power_loss,
    "other_config": checks.other_config,
    "other_run": checks.other_run,
    "other_bits": checks.other_bits,
    "other_steps": checks.other_steps,
    "evaluate": readers.evaluated,
    "report": readers.reported,
    "study": readers.studied,
    "nan": non_finite.one_device,
    "nan_in_a_row": non_finite.in_a_row,
    "spike": non_finite.spike,
    "workers": workers.lost_or_stopped,
    "settings": bad_inputs.settings,
    "settings_typed": bad_inputs.settings_typed,
    "corpora": bad_inputs.corpora,
}
CHEAP = (
    "flip",
    "truncate",
    "delete",
    "hostile",
    "settings",
    "other_config",
    "other_bits",
    "other_steps",
    "power",
)  # a trial takes milliseconds


def chosen(only: list[str] | None) -> list[str]:
    """Returns the chosen names of faults; ValueError for an unknown one."""
    for name in only or ():
        if name not in FAULTS:
            raise ValueError(f"--only={name} is no fault{near_names(name, FAULTS)}")
    return list(only or FAULTS)
