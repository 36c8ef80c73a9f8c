"""Advice: whether, from where and how much to inherit, within a budget of training time."""
