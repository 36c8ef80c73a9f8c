"""The life of an MLflow run: found or created, logged to, and always closed."""
