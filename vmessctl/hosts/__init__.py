"""Command lines for other hosts: which they are, the way there by ssh, and what comes back from several."""
