"""From runs to tables to figures."""
