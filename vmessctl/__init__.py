"""vmessctl: the command line that speaks to vmessd over its control socket."""
