"""The life of an MLflow run: found or created, logged to, and always closed.

The contract: whatever dies or goes away at whatever moment, what is lost is computed again, and no result is ever
wrong, counted twice or taken for another's.
"""
