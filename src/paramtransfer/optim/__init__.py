"""Gradient descent and minibatch optimizers with their schedules."""
