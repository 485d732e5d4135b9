"""Devices of a running VM: network cards and cables, serial console, VNC, keyboard.

Each takes a machine of :mod:`vmessd.vm` and changes or uses what that VM's QEMU emulates.
"""
