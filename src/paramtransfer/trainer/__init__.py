"""Lightning's Trainer, its progress bar, checkpoints and processes: how a training runs, not what it computes."""
