"""What things cost: candidates timed side by side in one process, round by round."""
