"""The life of an MLflow run: found or created, logged to, and always closed.

What is lost is computed again; nothing is ever counted twice or used for another result.
"""
