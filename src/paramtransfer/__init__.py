"""Parameter transfer: what happens if a new model inherits part of an old one?"""
