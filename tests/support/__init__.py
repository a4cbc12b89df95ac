"""What several test files share: oracles in float64, tiny runs, stored folders, forked scripts."""
