"""What every task gives a stage: a LightningDataModule that knows how long it is trained on."""

from pytorch_lightning import LightningDataModule


class StageData(LightningDataModule):
    """The data of one side of a task.

    Attributes:
        epochs: passes over it.
        batch_size: samples of a training step, over all devices; None where a step is on all samples at once.
        test_every_epoch: whether the test points are looked at after each epoch, too, for a curve.
    """

    epochs: int
    batch_size: int | None = None
    test_every_epoch: bool = False
