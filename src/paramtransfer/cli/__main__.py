"""`python -m paramtransfer.cli`: the same as `python train.py`."""

from paramtransfer.cli.main import main

if __name__ == "__main__":
    main()
