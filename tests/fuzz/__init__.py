"""Bad input of every kind, made from bytes, given to everything that takes any from outside.

``python -m tests.fuzz TARGET --seconds N`` goes on for as long as it is told.
"""
