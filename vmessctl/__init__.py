"""vmessctl: the command line client of vmessd, which it reaches over the control socket."""
