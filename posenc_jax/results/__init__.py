"""Results as values and files: rows, metric names, chance, published folders. Needs numpy alone."""
