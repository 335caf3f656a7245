"""A site's own say: what may leave it (`policy`, `privacy`), the record of what did (`audit`), the hook (`mod`).

Needs no more than PyYAML, filelock and numpy; Flower's differential privacy is imported when a policy asks for it.
"""
