"""The life of an MLflow run: found or created, logged to, and always closed."""

import os

# Read when MLflow is imported: nothing is sent anywhere but to the tracking store, no bar for files of a few kB, and no
# address of every run.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
