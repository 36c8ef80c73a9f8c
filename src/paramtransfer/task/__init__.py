"""What task 1 (upstream) and task 2 (downstream) are, as LightningDataModules."""
