"""The handlers of the verbs, one module for each group. `vmessctl/app.py` chooses the handler."""
