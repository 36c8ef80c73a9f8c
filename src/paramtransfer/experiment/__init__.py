"""A job: what identifies its stages, how each is found or trained."""
