"""Studies: arms x seeds under identical conditions, run side by side and resumed where they
stopped.
"""
