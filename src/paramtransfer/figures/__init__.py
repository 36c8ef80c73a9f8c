"""From the table of a sweep to figures: each class draws one kind, `choice` says which a sweep gets."""
