"""Command lines that are carried out on other hosts: what comes back, also from several."""
