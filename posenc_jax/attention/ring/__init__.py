"""Ring attention: sequence parallelism with an early stop."""
