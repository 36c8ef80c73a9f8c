"""The life of an MLflow run: found or created, logged to, and always closed."""

import os

# Read when MLflow is imported: nothing is sent anywhere but to the tracking store, and no bar for files of a few kB.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
