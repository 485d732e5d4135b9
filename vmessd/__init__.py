"""vmessd: an asyncio supervisor for KVM machines that live in plain directories."""

__version__ = "0.1.0"
