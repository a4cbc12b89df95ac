"""Costs of a program: hardware data sheets, FLOPs by formula, and analysis of compiled programs."""
