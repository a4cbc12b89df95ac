"""Costs of a program: hardware data sheets, FLOPs by formula, and what compiled programs do."""
