"""Command lines that are carried out on other hosts: the way there by ssh, and what comes back from several."""
