"""The command line as language: the table of verbs, and what is made of it: grammar, help, completion, manual."""
