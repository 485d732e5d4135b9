"""The control socket: who may connect, the Varlink methods, the budget of each user, the audit log."""
