"""Train one job or sweep: `python train.py --help`."""

from paramtransfer.cli.main import main

if __name__ == "__main__":
    main()
