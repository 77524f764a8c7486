"""Long runs of everything at once, of which every result is checked and nothing may grow.

``python -m tests.soak --device host|cuda`` runs it. What is asked is in `subjects`, the ways to ask
in `ways`, opening and closing in `cycles`, what is held in `watch`, and the run in `course`.
"""
