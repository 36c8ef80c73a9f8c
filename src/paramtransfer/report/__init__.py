"""What a person reads of a job or a sweep: tables in the terminal, files in the sweep's run, one HTML page."""
