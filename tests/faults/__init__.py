"""Faults, put into small runs on purpose: kills, damage, full disks and nonsense, and what came of each."""
