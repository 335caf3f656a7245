"""Data: where samples come from, how they are split, cached, imitated and batched.

Only `batches`, with `augment` and `resident`, imports torch; every other module needs no more than numpy, Pillow,
PyYAML and filelock.
"""
