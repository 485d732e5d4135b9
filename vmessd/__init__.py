"""vmessd: an asyncio supervisor for KVM machines that live in plain directories.

Packages, each of which imports only those before it: `core`, `storage`, `network`, `qemu`, `vm`, `devices`,
`supervisor`, `api`. The modules beside them put these together: `daemon` is the running service, `config` its
settings, `log` its log, `memory` its malloc, `background` is `vmessd --background`, which a client starts, and
`powerdown` is `vmessd --shutdown`, which works without a daemon.
"""

__version__ = "0.1.0"
