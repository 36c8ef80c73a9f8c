"""How a stage is trained: LightningModules, solvers and optimizers."""
