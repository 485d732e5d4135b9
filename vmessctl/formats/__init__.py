"""Descriptions of VMs for other programs, and of theirs for vmess: renderings and readers of text. Pure."""
