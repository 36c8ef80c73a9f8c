"""What a new model inherits: where (plan), which (select), how (apply), and the callback that does it."""
