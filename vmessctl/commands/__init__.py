"""What the verbs do: a module for each group of verbs."""
